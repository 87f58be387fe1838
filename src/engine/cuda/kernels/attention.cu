// Attention over sequences laid end to end (FlashAttention-2, Dao 2023): scores never leave the
// chip, and nothing is padded. For sm_80 and newer.
//
// Sizes are constants: -DHEAD (width of a head, at most 128), -DHEADS, -DALIBI=0|1 (Press et al.
// 2022, in its symmetric form: slope * |i - j| is subtracted from the scores).
//
// A block of four warps computes the rows of one head for 128 queries of one sequence (64 where
// heads are wide).

// Width in shared memory: a multiple of what the tensor cores take. Columns beyond HEAD are zero.
#define WIDTH (HEAD <= 16 ? 16 : HEAD <= 32 ? 32 : HEAD <= 64 ? 64 : 128)
#define CHUNKS (WIDTH / 8)
// Groups of 16 queries that a warp holds.
#ifndef GROUPS
#define GROUPS (WIDTH > 64 ? 1 : 2)
#endif
#define QUERIES (4 * 16 * GROUPS)
#define KEYS (WIDTH > 64 ? 32 : 64)

__device__ __forceinline__ u32 attention_shared(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// The offset in bytes of 8 numbers in a tile, such that neither rows nor columns of eight of these
// share memory banks.
__device__ __forceinline__ u32 swizzle(int row, int chunk) {
    const int fold = CHUNKS >= 8 ? row & 7 : CHUNKS == 4 ? (row >> 1) & 3 : (row >> 2) & 1;
    return (row * CHUNKS + (chunk ^ fold)) * 16;
}

__device__ __forceinline__ void copy_async(u32 to, const void* from, bool in_range) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(in_range ? 16 : 0) : "memory");
}

__device__ __forceinline__ void load_four(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void load_four_transposed(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

#if BF16
#define MMA_TYPES "f32.bf16.bf16.f32"
#else
#define MMA_TYPES "f32.f16.f16.f32"
#endif

__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col." MMA_TYPES " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Loads `rows` rows of a head, with zeros for rows from `end` on.
__device__ __forceinline__ void load_rows(u32 to, const u16* from, int stride, int first, int end, int rows) {
    for (int i = threadIdx.x; i < rows * CHUNKS; i += 128) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool in_range = first + row < end && chunk * 8 < HEAD;
        copy_async(to + swizzle(row, chunk), in_range ? from + (u64)(first + row) * stride + chunk * 8 : from, in_range);
    }
}

// `query_bias` is added to the queries, unless it is null. A bias of the keys would add the same to
// all scores of a query, and is left out. `out` is [tokens, HEADS * HEAD].
extern "C" __global__ void __launch_bounds__(128)
    attention(const u16* queries, int query_stride, const u16* keys, int key_stride, const u16* values, int value_stride,
              const u16* query_bias, const float* slopes, const int* starts, int sequences, u16* out) {
    __shared__ __align__(128) u16 query_tile[QUERIES * WIDTH];
    // Two blocks of keys and values are being loaded or worked on at any time.
    __shared__ __align__(128) u16 key_tiles[2][KEYS * WIDTH];
    __shared__ __align__(128) u16 value_tiles[2][KEYS * WIDTH];

    // Sequence s begins at block starts[s] / QUERIES + s, which leaves enough blocks for each.
    int low = 0, high = sequences - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (starts[middle] / QUERIES + middle <= (int)blockIdx.x) low = middle;
        else high = middle - 1;
    }
    const int begin = starts[low], end = starts[low + 1];
    const int first = begin + ((int)blockIdx.x - begin / QUERIES - low) * QUERIES;
    if (first >= end) return;
    const int head = blockIdx.y;
    queries += head * HEAD, keys += head * HEAD, values += head * HEAD;

    const u32 query_at = attention_shared(query_tile);
    const int blocks = (end - begin + KEYS - 1) / KEYS;
    auto load_block = [&](int block) {
        if (block < blocks) {
            const int at = begin + block * KEYS;
            load_rows(attention_shared(key_tiles[block & 1]), keys, key_stride, at, end, KEYS);
            load_rows(attention_shared(value_tiles[block & 1]), values, value_stride, at, end, KEYS);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    load_rows(query_at, queries, query_stride, first, end, QUERIES);
    load_block(0);
    load_block(1);

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_row = warp * 16 * GROUPS;
    // Scores are the plain products. Their scale, and the factor from exp to exp2, are applied with
    // the exponential.
    const float scale = 1.4426950408889634f * rsqrtf((float)HEAD);
#if ALIBI
    const float slope = -slopes[head] * sqrtf((float)HEAD);
#endif
    u32 q[GROUPS][WIDTH / 16][4];
    float sums[GROUPS][WIDTH / 8][4];
    float row_max[GROUPS][2], row_sum[GROUPS][2];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        row_max[g][0] = row_max[g][1] = -1e30f;
        row_sum[g][0] = row_sum[g][1] = 0.0f;
#pragma unroll
        for (int i = 0; i < WIDTH / 8; i++) sums[g][i][0] = sums[g][i][1] = sums[g][i][2] = sums[g][i][3] = 0.0f;
    }
    // A warp whose queries are all beyond the end loads and waits with the others, and computes
    // nothing.
    const bool is_active = first + warp_row < end;

    for (int block = 0; block < blocks; block++) {
        const int now = block & 1;
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        if (block == 0) {
#pragma unroll
            for (int g = 0; g < GROUPS; g++)
#pragma unroll
                for (int k = 0; k < WIDTH / 16; k++) {
                    load_four(q[g][k], query_at + swizzle(warp_row + g * 16 + (lane & 15), 2 * k + (lane >> 4)));
                    if (query_bias) {
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const int column = k * 16 + (i / 2) * 8 + 2 * (lane & 3);
                            const float2 x = unpack(q[g][k][i]);
                            const bool in_range = column < HEAD;
                            const float b0 = in_range ? single(query_bias[head * HEAD + column]) : 0.0f;
                            const float b1 = in_range ? single(query_bias[head * HEAD + column + 1]) : 0.0f;
                            q[g][k][i] = pack(x.x + b0, x.y + b1);
                        }
                    }
                }
        }
        const int key = block * KEYS;
        const bool more = block + 1 < blocks;
        float scores[GROUPS][KEYS / 8][4];
        if (is_active) {
            const u32 tile = attention_shared(key_tiles[now]);
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
                for (int g = 0; g < GROUPS; g++)
#pragma unroll
                    for (int i = 0; i < 4; i++) scores[g][2 * n][i] = scores[g][2 * n + 1][i] = 0.0f;
#pragma unroll
                for (int k = 0; k < WIDTH / 16; k++) {
                    u32 b[4];
                    load_four(b, tile + swizzle(n * 16 + (lane & 7) + (lane >> 4) * 8, 2 * k + ((lane >> 3) & 1)));
#pragma unroll
                    for (int g = 0; g < GROUPS; g++) {
                        mma(scores[g][2 * n], q[g][k], b[0], b[1]);
                        mma(scores[g][2 * n + 1], q[g][k], b[2], b[3]);
                    }
                }
            }
#pragma unroll
            for (int g = 0; g < GROUPS; g++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
#if ALIBI
                    // The query's position less the first key's of this thread.
                    const float distance = (float)(first - begin + warp_row + g * 16 + half * 8 + lane / 4 - key - 2 * (lane & 3));
#endif
#if ALIBI
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            float& score = scores[g][n][2 * half + i];
                            score = fmaf(slope, fabsf(distance - (float)(8 * n + i)), score);
                        }
#endif
                    if (!more) {
#pragma unroll
                        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                            for (int i = 0; i < 2; i++)
                                if (key + 8 * n + 2 * (lane & 3) + i >= end - begin) scores[g][n][2 * half + i] = -1e30f;
                    }
                    float block_max = row_max[g][half];
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
                        block_max = fmaxf(block_max, fmaxf(scores[g][n][2 * half], scores[g][n][2 * half + 1]));
                    block_max = fmaxf(block_max, __shfl_xor_sync(0xffffffffu, block_max, 1));
                    block_max = fmaxf(block_max, __shfl_xor_sync(0xffffffffu, block_max, 2));
                    const float rescale = power_of_two((row_max[g][half] - block_max) * scale);
                    row_max[g][half] = block_max;
                    const float offset = -block_max * scale;
                    float block_sum = 0.0f;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            float& score = scores[g][n][2 * half + i];
                            // Adds 0, or NaN for an infinite score, whose weight may be a
                            // harmless-looking 0.
                            block_sum = fmaf(0.0f, score, block_sum);
                            score = power_of_two(fmaf(score, scale, offset));
                            block_sum += score;
                        }
                    row_sum[g][half] = row_sum[g][half] * rescale + block_sum;
#pragma unroll
                    for (int n = 0; n < WIDTH / 8; n++) {
                        sums[g][n][2 * half] *= rescale;
                        sums[g][n][2 * half + 1] *= rescale;
                    }
                }
        }

        if (is_active) {
            const u32 tile = attention_shared(value_tiles[now]);
#pragma unroll
            for (int k = 0; k < KEYS / 16; k++) {
                u32 p[GROUPS][4];
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    p[g][0] = pack(scores[g][2 * k][0], scores[g][2 * k][1]);
                    p[g][1] = pack(scores[g][2 * k][2], scores[g][2 * k][3]);
                    p[g][2] = pack(scores[g][2 * k + 1][0], scores[g][2 * k + 1][1]);
                    p[g][3] = pack(scores[g][2 * k + 1][2], scores[g][2 * k + 1][3]);
                }
#pragma unroll
                for (int n = 0; n < WIDTH / 16; n++) {
                    u32 b[4];
                    load_four_transposed(b, tile + swizzle(k * 16 + (lane & 15), 2 * n + (lane >> 4)));
#pragma unroll
                    for (int g = 0; g < GROUPS; g++) {
                        mma(sums[g][2 * n], p[g], b[0], b[1]);
                        mma(sums[g][2 * n + 1], p[g], b[2], b[3]);
                    }
                }
            }
        }
        __syncthreads();
        load_block(block + 2);
    }

#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = row_sum[g][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            const float inverse_total = 1.0f / sum;
            const int row = first + warp_row + g * 16 + half * 8 + lane / 4;
            if (row >= end) continue;
            u32* target = (u32*)(out + (u64)row * (HEADS * HEAD) + head * HEAD);
#pragma unroll
            for (int n = 0; n < WIDTH / 8; n++)
                if (n * 8 < HEAD)
                    target[4 * n + (lane & 3)] = pack(sums[g][n][2 * half] * inverse_total, sums[g][n][2 * half + 1] * inverse_total);
        }
}
