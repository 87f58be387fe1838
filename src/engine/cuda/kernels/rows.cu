// The operators between the dense layers, each one pass over memory: layer norms with the residual,
// norms of queries and keys, rotary position embedding, activation, gating, pooling.
//
// Sizes are constants: -DHIDDEN, -DHEAD, -DHEADS. For rotary models, `rotary_frequencies`
// ([HEAD / 2]) is defined before this; -DQUERY_KEY_NORM=1 where queries and keys are normalised.
// Memory is accessed 16 bytes at a time: HIDDEN is a multiple
// of 8.

#define VECTORS (HIDDEN / 8)
// Warps that share a row in a layer norm: enough for its values to fit into registers while many
// rows are worked on at the same time.
#define WARPS (VECTORS <= 192 ? 1 : VECTORS <= 384 ? 2 : VECTORS <= 768 ? 4 : 8)
#define PER_LANE ((VECTORS + 32 * WARPS - 1) / (32 * WARPS))

struct Vec8 {
    float at[8];
};

__device__ __forceinline__ Vec8 load_vec8(const u16* from) {
    const uint4 raw = *(const uint4*)from;
    const float2 a = unpack(raw.x), b = unpack(raw.y), c = unpack(raw.z), d = unpack(raw.w);
    return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

__device__ __forceinline__ void store_vec8(u16* to, const Vec8& v) {
    *(uint4*)to = make_uint4(pack(v.at[0], v.at[1]), pack(v.at[2], v.at[3]), pack(v.at[4], v.at[5]), pack(v.at[6], v.at[7]));
}

// The sum over the warps of a row, of which this one is `part` of `WARPS`.
__device__ __forceinline__ float row_sum(float value, float (&parts)[8]) {
    value = warp_sum(value);
    if (WARPS == 1) return value;
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) parts[warp] = value;
    __syncthreads();
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) all += parts[warp / WARPS * WARPS + i];
    return all;
}

// The mean of a row, and one over its deviation: `total` is the sum of this lane's numbers, and
// `counts` whether it has any.
__device__ __forceinline__ float2 row_statistics(const Vec8 (&values)[PER_LANE], float total, bool counts, int lane,
                                                 float epsilon) {
    __shared__ float totals[8], squared[8];
    const float mean = row_sum(total, totals) * (1.0f / HIDDEN);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (counts && (i * 32 * WARPS + lane) * 8 < HIDDEN)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float deviation = values[i].at[j] - mean;
                squares += deviation * deviation;
            }
    return make_float2(mean, rsqrt_or_nan(row_sum(squares, squared) * (1.0f / HIDDEN) + epsilon));
}

// y = layer norm of x, or with SKIPS of x + skip + bias, which is also written to `sum` unless that
// is null. 8 / WARPS rows a block.
template <bool SKIPS>
__device__ __forceinline__ void norm_rows(const u16* x, const u16* skip, const u16* gamma, const u16* beta, const u16* bias,
                                          float epsilon, u16* y, u16* sum, int rows) {
    const int lane = threadIdx.x % (32 * WARPS);
    const int row = blockIdx.x * (8 / WARPS) + threadIdx.x / (32 * WARPS);
    const bool in_range = row < rows;
    const u64 at = (u64)row * HIDDEN;
    Vec8 values[PER_LANE];
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int column = (i * 32 * WARPS + lane) * 8;
        if (in_range && column < HIDDEN) {
            values[i] = load_vec8(x + at + column);
            if (SKIPS) {
                const Vec8 b = load_vec8(skip + at + column), c = load_vec8(bias + column);
#pragma unroll
                for (int j = 0; j < 8; j++) values[i].at[j] = values[i].at[j] + b.at[j] + c.at[j];
                if (sum) store_vec8(sum + at + column, values[i]);
            }
#pragma unroll
            for (int j = 0; j < 8; j++) total += values[i].at[j];
        }
    }
    const float2 statistics = row_statistics(values, total, in_range, lane, epsilon);
    const float mean = statistics.x, scale = statistics.y;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int column = (i * 32 * WARPS + lane) * 8;
        if (in_range && column < HIDDEN) {
            const Vec8 g = load_vec8(gamma + column), b = load_vec8(beta + column);
            Vec8 out;
#pragma unroll
            for (int j = 0; j < 8; j++) out.at[j] = (values[i].at[j] - mean) * scale * g.at[j] + b.at[j];
            store_vec8(y + at + column, out);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    skip_layer_norm(const u16* x, const u16* skip, const u16* gamma, const u16* beta, const u16* bias, float epsilon, u16* y,
                    u16* sum, int rows) {
    norm_rows<true>(x, skip, gamma, beta, bias, epsilon, y, sum, rows);
}

// ONNX Runtime's own layer norm gives a row other last bits where rows are few. Here a row does not
// depend on what else is in the batch.
extern "C" __global__ void __launch_bounds__(256)
    layer_norm(const u16* x, const u16* gamma, const u16* beta, float epsilon, u16* y, int rows) {
    norm_rows<false>(x, nullptr, gamma, beta, nullptr, epsilon, y, nullptr, rows);
}

// Embedding lookup: the rows of a table, of `across` * 8 columns, whose numbers are the token ids:
// [tokens, columns]. A warp a token.
extern "C" __global__ void __launch_bounds__(256)
    token_rows(const uint4* table, const long long* ids, uint4* y, int across, int rows, int tokens) {
    const int lane = threadIdx.x % 32, token = blockIdx.x * 8 + threadIdx.x / 32;
    if (token >= tokens) return;
    // An id out of range does not read beyond the table.
    const u64 row = (u64)min(max(ids[token], 0ll), rows - 1ll);
    for (int i = lane; i < across; i += 32) y[(u64)token * across + i] = __ldg(table + row * across + i);
}

// The sum and the sum of squares of each row, [rows, PARTS, 2]: what a dense layer needs to apply a
// layer norm to its input. All parts but the first are zero. A warp a row.
extern "C" __global__ void __launch_bounds__(256) row_moments(const u16* x, float2* moments, int rows) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    float total = 0.0f, squares = 0.0f;
    for (int column = lane * 8; column < HIDDEN; column += 256) {
        const Vec8 v = load_vec8(x + (u64)row * HIDDEN + column);
#pragma unroll
        for (int j = 0; j < 8; j++) total += v.at[j], squares = fmaf(v.at[j], v.at[j], squares);
    }
    total = warp_sum(total), squares = warp_sum(squares);
    for (int part = lane; part < PARTS; part += 32)
        moments[(u64)row * PARTS + part] = part ? make_float2(0.0f, 0.0f) : make_float2(total, squares);
}

#if FP8
// Rows as fp8 e4m3, multiplied by the power of two that brings their root mean square between 2 and
// 4, so that the largest of 10,000 numbers fits. `factors`, [rows], scale products of these rows to
// products of the normed rows. A warp a row.
extern "C" __global__ void __launch_bounds__(256)
    quantize_rows(const u16* x, const float2* moments, u8* y, float* factors, float epsilon, int rows) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    const float2 means = row_means(moments, row);
    // Without the bits of its fraction, it is a power of two.
    const float scale = __uint_as_float(__float_as_uint(4.0f * rsqrtf(fmaxf(means.y, 1e-30f))) & 0x7f800000u);
    for (int column = lane * 8; column < HIDDEN; column += 256) {
        const Vec8 v = load_vec8(x + (u64)row * HIDDEN + column);
        u32 out[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            out[i] = pack_fp8(v.at[4 * i] * scale, v.at[4 * i + 1] * scale) |
                     pack_fp8(v.at[4 * i + 2] * scale, v.at[4 * i + 3] * scale) << 16;
        *(uint2*)(y + (u64)row * HIDDEN + column) = make_uint2(out[0], out[1]);
    }
    if (lane == 0) factors[row] = inverse_deviation(means, epsilon) / scale;
}
#endif

// y = gelu(x + bias), [rows, width].
extern "C" __global__ void __launch_bounds__(256) bias_gelu(const u16* x, const u16* bias, u16* y, int width, u64 vectors) {
    const int across = width / 8;
    for (u64 i = blockIdx.x * 256ull + threadIdx.x; i < vectors; i += gridDim.x * 256ull) {
        Vec8 v = load_vec8(x + i * 8);
        const Vec8 b = load_vec8(bias + (i % across) * 8);
#pragma unroll
        for (int j = 0; j < 8; j++) v.at[j] = gelu(v.at[j] + b.at[j]);
        store_vec8(y + i * 8, v);
    }
}

// y = activation(first half of x) * second half, [rows, width] from [rows, 2 * width].
extern "C" __global__ void __launch_bounds__(256) gated(const u16* x, u16* y, int width, u64 vectors) {
    const int across = width / 8;
    for (u64 i = blockIdx.x * 256ull + threadIdx.x; i < vectors; i += gridDim.x * 256ull) {
        const u64 row = i / across, column = (i % across) * 8;
        Vec8 gate = load_vec8(x + row * 2 * width + column);
        const Vec8 value = load_vec8(x + row * 2 * width + width + column);
#pragma unroll
        for (int j = 0; j < 8; j++) gate.at[j] = ACTIVATION(gate.at[j]) * value.at[j];
        store_vec8(y + i * 8, gate);
    }
}

__device__ __forceinline__ int find_sequence(const int* starts, int sequences, int token) {
    int low = 0, high = sequences - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (starts[middle] <= token) low = middle;
        else high = middle - 1;
    }
    return low;
}

// The position of each token in its sequence.
extern "C" __global__ void __launch_bounds__(256) positions(const int* starts, int sequences, long long* token_positions, int tokens) {
    const int token = blockIdx.x * 256 + threadIdx.x;
    if (token < tokens) token_positions[token] = token - starts[find_sequence(starts, sequences, token)];
}

#ifdef ROTARY
// Cosine and sine of every token's angles, [tokens, HEAD / 2, 2]. A thread an angle.
extern "C" __global__ void __launch_bounds__(256) rotary_angles(const int* starts, int sequences, float2* angles, int tokens) {
    const u64 at = blockIdx.x * 256ull + threadIdx.x;
    const int token = (int)(at / (HEAD / 2));
    if (token >= tokens) return;
    const int position = token - starts[find_sequence(starts, sequences, token)];
    // The angle is rounded to a float, as everywhere else.
    float2 angle;
    sincosf((float)position * rotary_frequencies[at % (HEAD / 2)], &angle.y, &angle.x);
    angles[at] = angle;
}

#define ROTATED 4
// Queries and keys out of [tokens, 3 * HIDDEN] into [tokens, 2 * HIDDEN], with their bias, rotated
// by their positions (rotary embedding, Su et al. 2021; a number of a head's first half is paired
// with the one at the same place in its second half). A block does four tokens; angles are computed
// once for all heads.
extern "C" __global__ void __launch_bounds__(256)
    rotate(const u16* qkv, const u16* bias, const int* starts, int sequences, u16* out, int tokens) {
    constexpr int HALF = HEAD / 2;
    constexpr int STEP = HALF % 8 == 0 ? 8 : 4;
    __shared__ float cosine[ROTATED][HALF], sine[ROTATED][HALF];
    __shared__ int place_of[ROTATED];
    const int first = blockIdx.x * ROTATED;
    if (threadIdx.x < ROTATED && first + threadIdx.x < tokens) {
        const int token = first + threadIdx.x;
        place_of[threadIdx.x] = token - starts[find_sequence(starts, sequences, token)];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < ROTATED * HALF; i += 256) {
        if (first + i / HALF < tokens) {
            // The angle is rounded to a float, as everywhere else.
            const float angle = (float)place_of[i / HALF] * rotary_frequencies[i % HALF];
            sincosf(angle, &sine[i / HALF][i % HALF], &cosine[i / HALF][i % HALF]);
        }
    }
    __syncthreads();
    constexpr int PIECES = 2 * HIDDEN / (2 * STEP);
    for (int i = threadIdx.x; i < ROTATED * PIECES; i += 256) {
        const int which = i / PIECES, piece = i % PIECES, token = first + which;
        if (token >= tokens) break;
        const int head = piece / (HALF / STEP), at = (piece % (HALF / STEP)) * STEP;
        const int column = head * HEAD + at;
        const u16* from = qkv + (u64)token * 3 * HIDDEN + column;
        u16* to = out + (u64)token * 2 * HIDDEN + column;
        u32 left[STEP / 2], right[STEP / 2], left_bias[STEP / 2], right_bias[STEP / 2];
#pragma unroll
        for (int j = 0; j < STEP / 2; j += 2) {
            *(uint2*)&left[j] = *(const uint2*)(from + 2 * j);
            *(uint2*)&right[j] = *(const uint2*)(from + HALF + 2 * j);
            *(uint2*)&left_bias[j] = *(const uint2*)(bias + column + 2 * j);
            *(uint2*)&right_bias[j] = *(const uint2*)(bias + column + HALF + 2 * j);
        }
#pragma unroll
        for (int j = 0; j < STEP / 2; j++) {
            float2 a = unpack(left[j]), b = unpack(right[j]);
            const float2 c = unpack(left_bias[j]), d = unpack(right_bias[j]);
            a.x += c.x, a.y += c.y, b.x += d.x, b.y += d.y;
            const float* cs = &cosine[which][at + 2 * j];
            const float* sn = &sine[which][at + 2 * j];
            left[j] = pack_or_nan(a.x * cs[0] - b.x * sn[0], a.y * cs[1] - b.y * sn[1]);
            right[j] = pack_or_nan(b.x * cs[0] + a.x * sn[0], b.y * cs[1] + a.y * sn[1]);
        }
#pragma unroll
        for (int j = 0; j < STEP / 2; j += 2) {
            *(uint2*)(to + 2 * j) = *(uint2*)&left[j];
            *(uint2*)(to + HALF + 2 * j) = *(uint2*)&right[j];
        }
    }
}
#endif

#if QUERY_KEY_NORM
// Queries and keys out of [tokens, 3 * HIDDEN] into [tokens, 2 * HIDDEN], with their bias, as layer
// norms of whole rows of HIDDEN numbers (weights without a bias) and rotated by the angles of their
// tokens. `angles` are cosines and sines, [tokens, HEAD / 2, 2]. HEAD is 16, 32, 64 or 128, so that
// partners are HEAD / 16 lanes apart. Blocks as for layer norms of 2 * tokens rows.
extern "C" __global__ void __launch_bounds__(256)
    query_key_norm_rotary(const u16* qkv, const u16* bias, const u16* query_gamma, const u16* key_gamma, const float4* angles,
                          float epsilon, u16* out, int tokens) {
    const int lane = threadIdx.x % (32 * WARPS);
    const int row = blockIdx.x * (8 / WARPS) + threadIdx.x / (32 * WARPS);
    const int token = row / 2, which = row % 2;
    const bool in_range = token < tokens;
    const u64 from = ((u64)token * 3 + which) * HIDDEN, to = (u64)row * HIDDEN;
    const u16* gamma = which ? key_gamma : query_gamma;
    Vec8 values[PER_LANE];
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int column = (i * 32 * WARPS + lane) * 8;
        if (!in_range || column >= HIDDEN) continue;
        values[i] = load_vec8(qkv + from + column);
        const Vec8 b = load_vec8(bias + which * HIDDEN + column);
#pragma unroll
        for (int j = 0; j < 8; j++) total += values[i].at[j] += b.at[j];
    }
    const float2 statistics = row_statistics(values, total, in_range, lane, epsilon);
    const float mean = statistics.x, scale = statistics.y;
    // Which eight numbers of a head this lane has: the same ones of all its heads.
    constexpr int EIGHTS = HEAD / 8, STEP = EIGHTS / 2;
    const int own = lane % EIGHTS;
    const bool is_right = own >= STEP;
    float cosine[8], sine[8];
    if (in_range) {
        const float4* own_angles = angles + (u64)token * (HEAD / 4) + (own % STEP) * 4;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float4 two = __ldg(own_angles + j);
            cosine[2 * j] = two.x, cosine[2 * j + 1] = two.z;
            // The right half of a head is turned the other way.
            sine[2 * j] = is_right ? two.y : -two.y, sine[2 * j + 1] = is_right ? two.w : -two.w;
        }
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const int column = (i * 32 * WARPS + lane) * 8;
        const bool has = in_range && column < HIDDEN;
        Vec8 normed = {};
        if (has) {
            const Vec8 g = load_vec8(gamma + column);
#pragma unroll
            for (int j = 0; j < 8; j++) normed.at[j] = (values[i].at[j] - mean) * scale * g.at[j];
        }
        u32 turned[4];
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            // Whole heads are in range or not, so a lane's partner is where it is.
            const float a = __shfl_xor_sync(0xffffffffu, normed.at[j], STEP);
            const float b = __shfl_xor_sync(0xffffffffu, normed.at[j + 1], STEP);
            turned[j / 2] = pack_or_nan(normed.at[j] * cosine[j] + a * sine[j], normed.at[j + 1] * cosine[j + 1] + b * sine[j + 1]);
        }
        if (has) *(uint4*)(out + to + column) = make_uint4(turned[0], turned[1], turned[2], turned[3]);
    }
}
#endif

// The mean or the maximum over each range of tokens, [ranges, HIDDEN] in fp32. A block does 64
// columns of a range, 32 tokens at a time. A maximum over infinities of either sign is NaN, as that
// over NaN; the minus infinity that the maximum starts with stands for no token.
template <bool MEAN>
__device__ __forceinline__ void pool(const u16* tokens, const int2* ranges, float* out) {
    __shared__ float parts[32][65];
    const int2 range = ranges[blockIdx.x];
    const int column = blockIdx.y * 64 + (threadIdx.x % 8) * 8, first = threadIdx.x / 8;
    Vec8 sum;
#pragma unroll
    for (int j = 0; j < 8; j++) sum.at[j] = MEAN ? 0.0f : -__int_as_float(0x7f800000);
    if (column < HIDDEN)
        for (int token = range.x + first; token < range.y; token += 32) {
            const Vec8 v = load_vec8(tokens + (u64)token * HIDDEN + column);
#pragma unroll
            for (int j = 0; j < 8; j++) sum.at[j] = MEAN ? sum.at[j] + v.at[j] : larger_or_nan(sum.at[j], fmaf(0.0f, v.at[j], v.at[j]));
        }
#pragma unroll
    for (int j = 0; j < 8; j++) parts[first][(threadIdx.x % 8) * 8 + j] = sum.at[j];
    __syncthreads();
    const int own = blockIdx.y * 64 + threadIdx.x;
    if (threadIdx.x < 64 && own < HIDDEN) {
        float all = parts[0][threadIdx.x];
        for (int i = 1; i < 32; i++) {
            const float part = parts[i][threadIdx.x];
            all = MEAN ? all + part : larger_or_nan(all, part);
        }
        out[(u64)blockIdx.x * HIDDEN + own] = MEAN ? all / (float)(range.y - range.x) : all;
    }
}

extern "C" __global__ void __launch_bounds__(256) pool_mean(const u16* tokens, const int2* ranges, float* out) {
    pool<true>(tokens, ranges, out);
}

extern "C" __global__ void __launch_bounds__(256) pool_max(const u16* tokens, const int2* ranges, float* out) {
    pool<false>(tokens, ranges, out);
}
