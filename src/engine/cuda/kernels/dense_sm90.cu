// Dense layers on Hopper (sm_90a): C[M, N] = A[M, K] * W[N, K]^T, with the operators around them in
// the graph (layer norm before; bias, activation, gating, rotary embedding or residual after) as an
// epilogue. The activation is GELU, or with -DSILU=1 SiLU.
//
// Layer norms do not read or write memory of their own. Where a norm comes before, A is the input
// of the norm. The norm's weights and the subtraction of its mean are folded into W, and the
// epilogue divides by the deviation, for which it needs two numbers of a row: its moments, the sum
// and the sum of squares. Where a residual is added, the moments of the result are written for the
// next norm.
//
// A persistent kernel of clusters of two blocks. A block computes tiles of 128 x 256: one warp
// loads through the tensor memory accelerator into a ring of buffers, two warpgroups multiply
// (wgmma, 64 x 256 each). The blocks of a cluster work on adjacent rows, and each loads one half of
// the weight tile for both (multicast), which saves a third of the traffic from L2.
//
// The tensor cores never wait for an epilogue: at the end of a tile the sums are rounded into half
// as many registers, the next tile's products start, and activation, gating and stores of the
// finished tile run in between them.
//
// Needs K a multiple of 64 and not too small (see DENSE below), and N a multiple of 8. Rows beyond
// M and columns beyond N are neither read nor written. The rotary epilogue is for heads of 64 and
// of 32, whose two halves are in the same thread's registers.
//
// With -DFP8=1, A and W are fp8 (e4m3), and so is C after an activation; K is a multiple of 128.
// Where a norm comes before, A comes from `quantize_rows` (rows.cu), with one factor a row. Where C
// is fp8, each 16 of its columns are in the order 0 1 8 9, 2 3 10 11, ..., 6 7 14 15, as they are
// in registers: the weights of the next layer are stored in that order.

#define TILE_M 128
#define TILE_N 256
// Rows of a tile are 128 bytes, whatever the number format.
#define TILE_BYTES 128
#if FP8
#define TILE_K TILE_BYTES
#else
#define TILE_K (TILE_BYTES / 2)
#endif
#define STAGES 4
#define A_BYTES (TILE_M * TILE_BYTES)
#define B_BYTES (TILE_N * TILE_BYTES)
#define STAGE_BYTES (A_BYTES + B_BYTES)
#define STAGING_BYTES (64 * 64 * 2)
// Pairs of row tiles that are worked on at the same time, so that their inputs stay in L2.
#ifndef BAND
#define BAND 8
#endif

// After a layer norm: its deviation and the bias, alone, with the activation, with the activation
// and gating, or with rotary embedding. Without a norm before: bias and residual, to which a layer
// norm may be applied.
enum Epilogue { NORM, NORM_ACTIVATION, NORM_GATED, NORM_ROTARY, RESIDUAL, RESIDUAL_NORM };

struct __align__(64) TensorMap {
    char opaque[128];
};

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives at the barrier that has the same offset in the shared memory of the cluster's block
// `rank`.
__device__ __forceinline__ void barrier_arrive(u32 barrier, u32 rank) {
    asm volatile(
        "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;"
        " mbarrier.arrive.shared::cluster.b64 _, [remote]; }" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra.uni over;\nbra.uni again;\nover:\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void load_tile(const TensorMap* map, u32 to, u32 barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
}

__device__ __forceinline__ void load_tile_for_both(const TensorMap* map, u32 to, u32 barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(column), "r"(row), "h"((u16)3)
        : "memory");
}

__device__ __forceinline__ void store_tile(const TensorMap* map, u32 from, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(from),
                 "r"(column), "r"(row)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// A matrix in shared memory whose rows are 128 bytes, swizzled by 128 bytes, for wgmma.
__device__ __forceinline__ u64 matrix_descriptor(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | ((u64)1 << 16) | ((u64)64 << 32) | ((u64)1 << 62);
}

#if BF16
#define WGMMA_TYPES "bf16.bf16"
#else
#define WGMMA_TYPES "f16.f16"
#endif
#if FP8
#define WGMMA_256 "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 "
#define WGMMA_256_AS "p, 1, 1; }"
#else
#define WGMMA_256 "wgmma.mma_async.sync.aligned.m64n256k16.f32." WGMMA_TYPES " "
#define WGMMA_256_AS "p, 1, 1, 0, 0; }"
#endif

// d = a * b^T + (keep ? d : 0) for 64 rows of a and 256 rows of b, of 32 bytes each.
__device__ __forceinline__ void multiply(float (&d)[128], u64 a, u64 b, int keep) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %130, 0;\n"
        WGMMA_256
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, " WGMMA_256_AS
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
          "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
          "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),
          "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),
          "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
          "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
          "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),
          "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]),
          "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
        : "l"(a), "l"(b), "r"(keep));
}

__device__ __forceinline__ void multiply_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void multiply_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// The order of the tiles: bands of pairs of row tiles, and column by column within a band.
struct Tiles {
    int pairs, columns;
    __device__ __forceinline__ int count() const { return pairs * columns; }
    __device__ __forceinline__ void at(int index, int& pair, int& column) const {
        int band = index / (BAND * columns);
        int height = min(BAND, pairs - band * BAND);
        int within = index - band * BAND * columns;
        pair = band * BAND + within % height;
        column = within / height;
    }
};

__device__ __forceinline__ void store_matrices(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}

__device__ __forceinline__ void store_matrices(u32 address, u32 a, u32 b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}

// Loads what the version for four stored.
__device__ __forceinline__ void load_matrices(u32 address, u32 (&x)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void warpgroup_sync(int group) {
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

// x * scale + bias.
__device__ __forceinline__ float2 scaled(u32 pair, float scale, float2 bias) {
    const float2 x = unpack(pair);
    return make_float2(fmaf(x.x, scale, bias.x), fmaf(x.y, scale, bias.y));
}

// Rotates two numbers of a head's left half with their partners in its right half; `angles` are the
// cosines and sines.
__device__ __forceinline__ void rotate_pair(u32& left, u32& right, float scale, float2 left_bias, float2 right_bias, float4 angles) {
    const float2 a = scaled(left, scale, left_bias), b = scaled(right, scale, right_bias);
    left = pack_or_nan(a.x * angles.x - b.x * angles.y, a.y * angles.z - b.y * angles.w);
    right = pack_or_nan(b.x * angles.x + a.x * angles.y, b.y * angles.z + a.y * angles.w);
}

// What epilogues read and write, beside the residual and C.
struct EpilogueArguments {
    // [N], gated [2 * N], rotary [rotated columns].
    const u32* bias;
    // Cosine and sine of each token's angles, [M, HEAD / 2, 2].
    const float4* angles;
    // How many columns, from the first one, are rotated; whole heads.
    int rotary_columns;
    // Moments of the rows that are normed, A's or the residual's, [M, PARTS, 2].
    const float2* moments;
    float epsilon;
    // Of an A in fp8: what products are multiplied by instead of 1 / deviation, [M].
    const float* factors;
    // Products are multiplied by it: W is scaled down, so that products that are not divided by the
    // deviation yet fit the number format; in fp8, W and A are scaled up.
    float gain;
    // Weights of the residual's layer norm, [N].
    const u32* gamma;
    // Residual: where the moments of the result are written, [M, PARTS, 2].
    float2* sums;
};

// 1 / deviation of a row, and mean / deviation.
__device__ __forceinline__ float2 row_norm(const EpilogueArguments& extra, int row) {
    const float2 means = row_means(extra.moments, row);
    const float scale = inverse_deviation(means, extra.epsilon);
    return make_float2(scale, means.x * scale);
}

// The shared memory in which a warpgroup stages its output.
struct Staging {
    int group;
    // Two buffers of 64 x 64 numbers, and the barriers at which the residual arrives in them.
    u32 buffers, barriers;
    // The bias of a tile's columns, followed by the weights of the residual's norm.
    u32 bias;
    // Residual, [M, N].
    const TensorMap* skip;
    __device__ __forceinline__ u32 buffer(int section) const { return buffers + section % 2 * STAGING_BYTES; }
    __device__ __forceinline__ u32 arrived(int section) const { return barriers + section % 2 * 8; }
};

// One warpgroup's share of a finished tile, which the epilogue works off in units of 16 columns
// while the next tile is multiplied.
template <Epilogue EPILOGUE>
struct PendingTile {
    static constexpr int UNITS = EPILOGUE == NORM_GATED ? 8 : 16;
    static constexpr bool HAS_RESIDUAL = EPILOGUE == RESIDUAL || EPILOGUE == RESIDUAL_NORM;
    static constexpr bool OUTPUTS_FP8 = FP8 && (EPILOGUE == NORM_ACTIVATION || EPILOGUE == NORM_GATED);
    // Units that are stored together, in rows of 128 bytes.
    static constexpr int SECTION_UNITS = OUTPUTS_FP8 ? 8 : 4;
    // Rotary: a half of a head, in groups of 8 columns.
    static constexpr int HALF = HEAD >= 16 ? HEAD / 16 : 1;
    // The tile's products in 16 bits, two a register: of each 8 columns, rows r and r + 8 of the
    // thread.
    u32 pairs[64];
    // The tile's first row and column.
    int row, column;
    bool is_pending;
    // Rotary: the angles of the next unit's rows.
    float4 angles[2];
    // Residual: the moments of both rows so far.
    float2 moments[2];
    // 1 / deviation and mean / deviation of both rows.
    float2 norm[2];
    // This thread's two columns of the bias, and of the weights of the residual's norm.
    u32 own_bias, own_gamma;

    // This thread's row in the tile at `first`, or the one 8 below it; beyond the end, the last
    // row.
    static __device__ __forceinline__ int row_at(int first, int half, int m) {
        const int thread = threadIdx.x & 127;
        return min(first + (thread >> 5) * 16 + ((thread & 31) >> 2) + 8 * half, m - 1);
    }

    __device__ __forceinline__ void fetch_angles(const EpilogueArguments& extra, int m, int unit) {
#pragma unroll
        for (int half = 0; half < 2; half++)
            angles[half] = __ldg(extra.angles + (u64)row_at(row, half, m) * (HEAD / 4) + 4 * (unit % HALF) + (threadIdx.x & 3));
    }

    // Loads a quarter of the residual's tile into its staging buffer, once the last store from
    // there has been read.
    static __device__ __forceinline__ void fetch_skip(const Staging& staging, int section, int column, int row) {
        if ((threadIdx.x & 127) != 0) return;
        asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
        barrier_expect(staging.arrived(section), STAGING_BYTES);
        load_tile(staging.skip, staging.buffer(section), staging.arrived(section), column + 64 * section, row);
    }

    // Starts loading what the current tile's epilogue needs, once the previous tile is stored and
    // before the current products are done.
    __device__ __forceinline__ void fetch(const EpilogueArguments& extra, const Staging& staging, int m, int n, int first, int column) {
        const int thread = threadIdx.x & 127;
        int at = column + 2 * thread, end = EPILOGUE == NORM_ROTARY ? extra.rotary_columns : n;
        // The second half of the tile are values, whose bias comes after that of all gates.
        if (EPILOGUE == NORM_GATED && thread >= 64) at += n - TILE_N / 2, end = 2 * n;
        own_bias = EPILOGUE != NORM && at < end ? __ldg(extra.bias + at / 2) : 0;
        if (EPILOGUE == RESIDUAL_NORM) own_gamma = at < end ? __ldg(extra.gamma + at / 2) : 0;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = row_at(first, half, m);
            if (FP8 && !HAS_RESIDUAL) norm[half].x = __ldg(extra.factors + row);
            else if (EPILOGUE != RESIDUAL) norm[half] = row_norm(extra, row);
            if (!HAS_RESIDUAL) norm[half].x *= extra.gain;
        }
        if (HAS_RESIDUAL) {
            fetch_skip(staging, 0, column, first);
            fetch_skip(staging, 1, column, first);
        }
    }

    // Takes over a finished tile, rounded to 16 bits.
    __device__ __forceinline__ void take(const float (&sums)[128], const EpilogueArguments& extra, int m) {
#pragma unroll
        for (int i = 0; i < 64; i++) pairs[i] = pack(sums[2 * i], sums[2 * i + 1]);
        is_pending = true;
        if (HAS_RESIDUAL) moments[0] = moments[1] = make_float2(0.0f, 0.0f);
        if (EPILOGUE == NORM_ROTARY && column < extra.rotary_columns) fetch_angles(extra, m, 0);
    }

    // Two columns of the tile's bias, or of its norm's weights.
    static __device__ __forceinline__ float2 bias_at(u32 bias, int column) {
        u32 two;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(two) : "r"(bias + 2 * column));
        return unpack(two);
    }

    // Adds the residual to two numbers, and the result to its row's moments.
    __device__ __forceinline__ u32 add(u32 pair, u32 skip, float2 bias, float2 gamma, int half, float gain) {
        float2 x = FP8 ? scaled(pair, gain, bias) : unpack(pair), residual = unpack(skip);
        if (EPILOGUE == RESIDUAL_NORM) {
            residual.x = fmaf(residual.x, norm[half].x, -norm[half].y) * gamma.x;
            residual.y = fmaf(residual.y, norm[half].x, -norm[half].y) * gamma.y;
        }
        if (FP8) x.x += residual.x, x.y += residual.y;
        else x.x += bias.x + residual.x, x.y += bias.y + residual.y;
        moments[half].x += x.x + x.y;
        moments[half].y = fmaf(x.x, x.x, fmaf(x.y, x.y, moments[half].y));
        return pack(x.x, x.y);
    }

    // The four threads of a row add up their moments, and one writes.
    __device__ __forceinline__ void write_moments(const EpilogueArguments& extra, int m) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float2 all = moments[half];
#pragma unroll
            for (int step = 1; step < 4; step *= 2) {
                all.x += __shfl_xor_sync(0xffffffffu, all.x, step);
                all.y += __shfl_xor_sync(0xffffffffu, all.y, step);
            }
            const int thread = threadIdx.x & 127, to = row + (thread >> 5) * 16 + ((thread & 31) >> 2) + 8 * half;
            if ((thread & 3) == 0 && to < m) extra.sums[(u64)to * PARTS + column / TILE_N] = all;
        }
    }

    // One unit of the epilogue. A section is stored from the staging buffer that its residual was
    // loaded into.
    template <int UNIT>
    __device__ __forceinline__ void unit(const TensorMap* to, const EpilogueArguments& extra, const Staging& staging, int m) {
        if (UNIT >= UNITS || !is_pending) return;
        constexpr int SECTION = UNIT / SECTION_UNITS;
        const int thread = threadIdx.x & 127, lane = thread & 31;
        if (UNIT % SECTION_UNITS == 0) {
            // The last store from this buffer has been read.
            if (!HAS_RESIDUAL && thread == 0) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
            if (UNIT == 0) {
                asm volatile("st.shared.b32 [%0], %1;" ::"r"(staging.bias + 4 * thread), "r"(own_bias) : "memory");
                if (EPILOGUE == RESIDUAL_NORM)
                    asm volatile("st.shared.b32 [%0], %1;" ::"r"(staging.bias + 2 * TILE_N + 4 * thread), "r"(own_gamma) : "memory");
            }
            if (!HAS_RESIDUAL || UNIT == 0) warpgroup_sync(staging.group);
            if (HAS_RESIDUAL) barrier_wait(staging.arrived(SECTION), SECTION / 2);
        }
        if (HAS_RESIDUAL && UNIT % SECTION_UNITS == 1 && SECTION >= 1 && SECTION < 3) fetch_skip(staging, SECTION + 1, column, row);
        // The two groups of 8 columns, counted within the tile: neighbours, or partners in the two
        // halves of a head.
        constexpr int FIRST = EPILOGUE == NORM_ROTARY ? UNIT / HALF * (2 * HALF) + UNIT % HALF : 2 * UNIT;
        constexpr int SECOND = EPILOGUE == NORM_ROTARY ? FIRST + HALF : FIRST + 1;
        // 16 bytes of a row.
        const int chunk = OUTPUTS_FP8 ? UNIT % 8 : (lane >> 4 ? SECOND : FIRST) % 8;
        const u32 address = staging.buffer(SECTION) + ((thread >> 5) * 16 + (lane & 15)) * 128 + ((chunk ^ (lane & 7)) << 4);
        u32 out[4] = {pairs[(2 * FIRST) % 64], pairs[(2 * FIRST + 1) % 64], pairs[(2 * SECOND) % 64], pairs[(2 * SECOND + 1) % 64]};
        if (EPILOGUE == NORM_ROTARY && column + 8 * FIRST >= extra.rotary_columns) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 x = scaled(out[i], norm[i % 2].x, make_float2(0.0f, 0.0f));
                out[i] = pack(x.x, x.y);
            }
        } else {
            const int at[2] = {8 * FIRST + 2 * (lane & 3), 8 * SECOND + 2 * (lane & 3)};
            const float2 biases[2] = {bias_at(staging.bias, at[0]), bias_at(staging.bias, at[1])};
            u32 skip[4];
            if (HAS_RESIDUAL) load_matrices(address, skip);
            if (EPILOGUE == NORM_ROTARY) {
                rotate_pair(out[0], out[2], norm[0].x, biases[0], biases[1], angles[0]);
                rotate_pair(out[1], out[3], norm[1].x, biases[0], biases[1], angles[1]);
                if (UNIT < UNITS - 1) fetch_angles(extra, m, UNIT + 1);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 own = biases[i / 2];
                if (EPILOGUE == NORM) {
                    const float2 x = scaled(out[i], norm[i % 2].x, own);
                    out[i] = pack_or_nan(x.x, x.y);
                }
                if (EPILOGUE == NORM_ACTIVATION || EPILOGUE == NORM_GATED) {
                    float2 x = scaled(out[i], norm[i % 2].x, own);
                    x.x = ACTIVATION(x.x), x.y = ACTIVATION(x.y);
                    if (EPILOGUE == NORM_GATED) {
                        const float2 bias = bias_at(staging.bias, at[i / 2] + TILE_N / 2);
                        const float2 value = scaled(pairs[(2 * FIRST + i + 32) % 64], norm[i % 2].x, bias);
                        x.x *= value.x, x.y *= value.y;
                    }
                    out[i] = OUTPUTS_FP8 ? pack_fp8(x.x * FP8_SCALE, x.y * FP8_SCALE) : pack(x.x, x.y);
                }
                if (HAS_RESIDUAL) {
                    const float2 gamma =
                        EPILOGUE == RESIDUAL_NORM ? bias_at(staging.bias + 2 * TILE_N, at[i / 2]) : make_float2(0.0f, 0.0f);
                    out[i] = add(out[i], skip[i], own, gamma, i % 2, extra.gain);
                }
            }
        }
        if (OUTPUTS_FP8) store_matrices(address, out[0] | out[2] << 16, out[1] | out[3] << 16);
        else store_matrices(address, out[0], out[1], out[2], out[3]);
        if (UNIT % SECTION_UNITS == SECTION_UNITS - 1) {
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            warpgroup_sync(staging.group);
            if (thread == 0) store_tile(to, staging.buffer(SECTION), column + SECTION * 16 * SECTION_UNITS, row);
        }
        if (UNIT == UNITS - 1) {
            if (HAS_RESIDUAL) write_moments(extra, m);
            is_pending = false;
        }
    }
};

// `EACH` units of the epilogue run while two steps of the next tile are multiplied: as few as K
// allows for all units to be done by the end of the tile.
template <Epilogue EPILOGUE, int EACH>
__device__ __forceinline__ void dense(const TensorMap* a, const TensorMap* w, const TensorMap* c, const TensorMap* skip,
                                      const EpilogueArguments& extra, int m, int n, int k) {
    extern __shared__ __align__(1024) char dynamic[];
    const u32 base = shared_address(dynamic);
    const u32 buffers = base + STAGES * STAGE_BYTES;
    const u32 full = buffers + 4 * STAGING_BYTES, empty = full + 8 * STAGES, arrived = empty + 8 * STAGES;
    const u32 biases = arrived + 4 * 8;
    const u32 rank = cluster_rank();
    // Gated: half of a tile's weight rows are gates, the others the values of the same columns.
    const int width = EPILOGUE == NORM_GATED ? TILE_N / 2 : TILE_N;
    const Tiles tiles = {(m + 2 * TILE_M - 1) / (2 * TILE_M), (n + width - 1) / width};
    const int steps = k / TILE_K;
    const int first = blockIdx.x / 2, stride = gridDim.x / 2;

    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_init(full + 8 * stage, 1);
            barrier_init(empty + 8 * stage, 4);
        }
        for (int buffer = 0; buffer < 4; buffer++) barrier_init(arrived + 8 * buffer, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();

    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {
            int stage = 0;
            u32 parity = 0;
            for (int index = first; index < tiles.count(); index += stride) {
                int pair, column;
                tiles.at(index, pair, column);
                const int row = (2 * pair + rank) * TILE_M;
                const int weight = EPILOGUE == NORM_GATED ? column * width + rank * n : column * width + rank * (TILE_N / 2);
                for (int step = 0; step < steps; step++) {
                    const u32 buffer = base + stage * STAGE_BYTES, ready = full + 8 * stage;
                    barrier_wait(empty + 8 * stage, parity ^ 1);
                    barrier_expect(ready, STAGE_BYTES);
                    load_tile(a, buffer, ready, step * TILE_K, row);
                    load_tile_for_both(w, buffer + A_BYTES + rank * (B_BYTES / 2), ready, step * TILE_K, weight);
                    if (++stage == STAGES) stage = 0, parity ^= 1;
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int group = threadIdx.x / 128 - 1;
        const bool signals = (threadIdx.x & 127) < 2;
        const u32 signalled = threadIdx.x & 1;
        const Staging staging = {group, buffers + group * 2 * STAGING_BYTES, arrived + group * 16, biases + group * (2 * TILE_N * 2), skip};
        PendingTile<EPILOGUE> pending_tile;
        pending_tile.is_pending = false;
        float sums[128];
        int stage = 0;
        u32 parity = 0;

        auto multiply_step = [&](int step) {
            const u32 buffer = base + stage * STAGE_BYTES;
            barrier_wait(full + 8 * stage, parity);
            const u64 left = matrix_descriptor(buffer + group * (A_BYTES / 2));
            const u64 right = matrix_descriptor(buffer + A_BYTES);
            multiply_begin();
#pragma unroll
            for (int piece = 0; piece < TILE_BYTES / 32; piece++) {
                // 32 bytes are 2 in a descriptor's units.
                multiply(sums, left + 2 * piece, right + 2 * piece, step > 0 || piece > 0);
            }
            multiply_commit();
        };
        // Only the last step's products are unfinished: the buffer before it is free.
        auto release = [&](bool any) {
            multiply_wait<1>();
            if (any && signals) barrier_arrive(empty + 8 * ((stage + STAGES - 1) % STAGES), signalled);
        };
        auto next_stage = [&] {
            if (++stage == STAGES) stage = 0, parity ^= 1;
        };

        for (int index = first; index < tiles.count(); index += stride) {
            int pair, column;
            tiles.at(index, pair, column);
            const int row = (2 * pair + rank) * TILE_M + group * 64;
            constexpr int BLOCKS = PendingTile<EPILOGUE>::UNITS / EACH;
#define UNIT(INDEX) pending_tile.template unit<INDEX>(c, extra, staging, m);
#define STEPS(BLOCK)                                                            \
    if (BLOCK < BLOCKS) {                                                       \
        multiply_step(2 * (BLOCK));                                             \
        release(BLOCK > 0);                                                     \
        next_stage();                                                           \
        multiply_step(2 * (BLOCK) + 1);                                         \
        UNIT((BLOCK) * EACH)                                                    \
        if (EACH >= 2) UNIT((BLOCK) * EACH + 1)                                 \
        if (EACH >= 4) {                                                        \
            UNIT((BLOCK) * EACH + 2)                                            \
            UNIT((BLOCK) * EACH + 3)                                            \
        }                                                                       \
        if (EACH >= 8) {                                                        \
            UNIT((BLOCK) * EACH + 4)                                            \
            UNIT((BLOCK) * EACH + 5)                                            \
            UNIT((BLOCK) * EACH + 6)                                            \
            UNIT((BLOCK) * EACH + 7)                                            \
        }                                                                       \
        if (BLOCK == BLOCKS - 1) pending_tile.fetch(extra, staging, m, n, row, column * width); \
        release(true);                                                          \
        next_stage();                                                           \
    }
            STEPS(0) STEPS(1) STEPS(2) STEPS(3) STEPS(4) STEPS(5) STEPS(6) STEPS(7)
            STEPS(8) STEPS(9) STEPS(10) STEPS(11) STEPS(12) STEPS(13) STEPS(14) STEPS(15)
#undef STEPS
            for (int step = 2 * BLOCKS; step < steps; step++) {
                multiply_step(step);
                release(true);
                next_stage();
            }
            multiply_wait<0>();
            if (signals) barrier_arrive(empty + 8 * ((stage + STAGES - 1) % STAGES), signalled);
            pending_tile.row = row;
            pending_tile.column = column * width;
            pending_tile.take(sums, extra, m);
        }
        UNIT(0) UNIT(1) UNIT(2) UNIT(3) UNIT(4) UNIT(5) UNIT(6) UNIT(7)
        UNIT(8) UNIT(9) UNIT(10) UNIT(11) UNIT(12) UNIT(13) UNIT(14) UNIT(15)
#undef UNIT
        if ((threadIdx.x & 127) == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
    // No block ends while the other one of the cluster may still write into its shared memory.
    __syncwarp();
    cluster_sync();
}

#define DENSE(NAME, EPILOGUE, EACH)                                                                                         \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)                                          \
        NAME(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap c, \
             const __grid_constant__ TensorMap skip, const u32* bias, const float4* angles, const float2* moments,          \
             const float* factors, const u32* gamma, float2* sums, int rotary_columns, float epsilon, float gain, int m, int n,    \
             int k) {                                                                                                       \
        const EpilogueArguments extra = {bias, angles, rotary_columns, moments, epsilon, factors, gain, gamma, sums};                          \
        dense<EPILOGUE, EACH>(&a, &w, &c, &skip, extra, m, n, k);                                                           \
    }

// The kernels that are compiled are named after this: DENSE(name, epilogue, each). All units must
// be done within the next tile's steps: K >= 2048 / each, with gating K >= 1024 / each; twice as
// much in fp8.
