// Attention over sequences laid end to end on Hopper (sm_90a), for heads of 64 and of 32: as
// attention.cu, with the tensor cores fed from shared memory by whole warpgroups (wgmma), and keys
// and values loaded by the tensor memory accelerator (FlashAttention-3, Shah et al. 2024).
//
// Compiled after dense_sm90.cu, whose barriers, loads and descriptors it uses. Sizes are constants:
// -DHIDDEN, -DHEADS, -DHEAD=64|32, -DALIBI=0|1 (with heads of 64), and -DSTREAMS, the number of
// streams on which launches may overlap.
//
// A task is 64 columns, which are one head or two, for 128 queries of one sequence. The kernel is
// persistent, with one block a multiprocessor, in which two teams take task after task. A team has
// two warpgroups of 64 queries and a warp that looks up and loads the next task, because tasks are
// short: a protein of 300 residues has five blocks of keys, and computing with them takes less time
// than loading the first. Tasks are assigned to teams dynamically, since their cost depends on the
// length of the sequence and, with ALiBi, on the head. Rows of the next sequence that are loaded
// with the last block of keys are masked, and their values cleared: if one of them were infinite or
// NaN, a weight of zero would not exclude it.
//
// Weights are relative to a score that is the row's largest up to a factor of 256, so that sums are
// rescaled only when a much larger one is found (as in FlashAttention-4). With ALiBi a task begins
// with the keys at its own queries. Blocks of keys that are far away have weights that round to
// zero in 16 bits, and are skipped.

#define SM90_QUERIES 128
#define SM90_KEYS 64
#define SM90_RING 4
// 64 rows of 64 columns.
#define SM90_TILE (64 * 64 * 2)
// Heads side by side in a tile.
#define SM90_HEADS (64 / HEAD)
#if HEAD != 64 && (HEAD != 32 || HEADS % 2 != 0 || ALIBI)
#error "heads of 64, or an even number of heads of 32 without ALiBi"
#endif

// d = a * b^T + (keep ? d : 0): a, 64 x 16, in registers; b in shared memory, 64 x 16 (or 16 x 64,
// where it is transposed).
template <int TRANSPOSED>
__device__ __forceinline__ void multiply_64(float (&d)[32], const u32 (&a)[4], u64 b, int keep) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." WGMMA_TYPES " "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, %38; }"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(TRANSPOSED));
}

// sums += weights * values of a head, for 16 keys: weights, 64 x 16, in registers; values, 16 x the
// head's width, in shared memory.
__device__ __forceinline__ void add_values(float (&sums)[32], const u32 (&weights)[4], u64 values) {
    multiply_64<1>(sums, weights, values, 1);
}

__device__ __forceinline__ void add_values(float (&d)[16], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n32k16.f32." WGMMA_TYPES " "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19}, %20, 1, 1, 1, 1;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A task, as the loading warp passes it on. A negative `begin` means that there are no more.
struct Task {
    // Its sequence, its first query, its first column.
    int begin, end, first, column;
    __device__ __forceinline__ int blocks() const { return (end - begin + SM90_KEYS - 1) / SM90_KEYS; }
    // The block of keys of a step. With ALiBi, the first is that of the first queries, and after
    // the last block come those before it.
    __device__ __forceinline__ int block(int step) const {
        const int at = (ALIBI ? (first - begin) / SM90_KEYS : 0) + step;
        return at < blocks() ? at : at - blocks();
    }
    // Where the sequence ends within the first warpgroup's queries, the second one has none.
    __device__ __forceinline__ int groups() const { return first + 64 < end ? 2 : 1; }
};

__device__ __forceinline__ void store_task(u32 address, const Task& task) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(task.begin), "r"(task.end), "r"(task.first),
                 "r"(task.column)
                 : "memory");
}

__device__ __forceinline__ Task read_task(u32 address) {
    Task task;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(task.begin), "=r"(task.end), "=r"(task.first), "=r"(task.column)
                 : "r"(address)
                 : "memory");
    return task;
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Tiles of a team: two buffers of queries, and the ring of keys and values.
#define SM90_TILES ((2 * 2 + SM90_RING * 2) * SM90_TILE)
// Barriers and tasks of a team.
#define SM90_BARRIERS ((2 * SM90_RING + 2 * 2) * 8 + 2 * 16)

// The shared memory of a team.
struct Shared {
    u32 tiles, barriers;
    __device__ __forceinline__ Shared(u32 base, int team) {
        tiles = base + team * SM90_TILES;
        barriers = base + 2 * SM90_TILES + team * SM90_BARRIERS;
    }
    // Two tiles of queries, the barriers for when they have arrived and for when they are not
    // needed any more, and their task.
    __device__ __forceinline__ u32 queries(u32 round) const { return tiles + round % 2 * 2 * SM90_TILE; }
    __device__ __forceinline__ u32 arrived(u32 round) const { return barriers + round % 2 * 8; }
    __device__ __forceinline__ u32 free(u32 round) const { return barriers + 2 * 8 + round % 2 * 8; }
    __device__ __forceinline__ u32 task(u32 round) const { return barriers + 4 * 8 + round % 2 * 16; }
    // A tile of keys and one of values, and the barriers for when they are full and empty.
    __device__ __forceinline__ u32 keys(u32 block) const { return tiles + 4 * SM90_TILE + block % SM90_RING * 2 * SM90_TILE; }
    __device__ __forceinline__ u32 full(u32 block) const { return barriers + 4 * 8 + 2 * 16 + block % SM90_RING * 8; }
    __device__ __forceinline__ u32 empty(u32 block) const { return full(block) + SM90_RING * 8; }
};

// For the launch on each stream: how many tasks were taken, and how many teams have found that
// there are no more.
__device__ int task_counters[STREAMS][2];

// Loads what a team's tasks need, as soon as there is room. The number of tasks is
// `query_tiles` * (HIDDEN / 64).
__device__ __forceinline__ void load_tasks(const Shared& shared, const TensorMap* queries_keys, const TensorMap* qkv, const int* starts,
                                           int sequences, int query_tiles, int* tasks) {
    constexpr int COLUMNS = HIDDEN / 64;
    int round = 0, loaded = 0;
    for (int index; (index = atomicAdd(&tasks[0], 1)) < query_tiles * COLUMNS;) {
        // Sequence s begins at tile starts[s] / 128 + s, which leaves enough tiles for each.
        const int query_tile = index / COLUMNS;
        int low = 0, high = sequences - 1;
        while (low < high) {
            const int middle = (low + high + 1) / 2;
            if (__ldg(starts + middle) / SM90_QUERIES + middle <= query_tile) low = middle;
            else high = middle - 1;
        }
        Task task = {__ldg(starts + low), __ldg(starts + low + 1), 0, index % COLUMNS * 64};
        task.first = task.begin + (query_tile - task.begin / SM90_QUERIES - low) * SM90_QUERIES;
        if (task.first >= task.end) continue;

        const u32 to = shared.queries(round), ready = shared.arrived(round);
        barrier_wait(shared.free(round), (round / 2 + 1) & 1);
        store_task(shared.task(round), task);
        barrier_expect(ready, task.groups() * SM90_TILE);
        for (int g = 0; g < task.groups(); g++) load_tile(queries_keys, to + g * SM90_TILE, ready, task.column, task.first + g * 64);
        round++;
        for (int step = 0; step < task.blocks(); step++, loaded++) {
            const int row = task.begin + task.block(step) * SM90_KEYS;
            const u32 keys = shared.keys(loaded), full = shared.full(loaded);
            barrier_wait(shared.empty(loaded), (loaded / SM90_RING + 1) & 1);
            barrier_expect(full, 2 * SM90_TILE);
            load_tile(queries_keys, keys, full, HIDDEN + task.column, row);
            load_tile(qkv, keys + SM90_TILE, full, 2 * HIDDEN + task.column, row);
        }
    }
    barrier_wait(shared.free(round), (round / 2 + 1) & 1);
    store_task(shared.task(round), {-1, 0, 0, 0});
    arrive(shared.arrived(round));
    // The last team resets the counters for the next launch.
    if (atomicAdd(&tasks[1], 1) == 2 * gridDim.x - 1) tasks[0] = tasks[1] = 0;
}

// Whether `it` is true in all threads of this warpgroup.
__device__ __forceinline__ bool all_of_group(bool it) {
    int all;
    asm volatile("{ .reg .pred p, q; setp.ne.b32 p, %1, 0; bar.red.and.pred q, %2, 128, p; selp.b32 %0, 1, 0, q; }"
                 : "=r"(all)
                 : "r"((int)it), "r"(1 + threadIdx.x / 128)
                 : "memory");
    return all;
}

// Sets a tile's rows from `first` on to zero. Each warpgroup does so on its own, even while the
// other one multiplies: the result is the same.
__device__ __forceinline__ void clear_values(u32 tile, int first) {
    if (first >= SM90_KEYS) return;
    for (int at = first * 8 + (threadIdx.x & 127); at < SM90_KEYS * 8; at += 128)
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(tile + at * 16), "r"(0) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    warpgroup_sync(threadIdx.x / 128);
}

// One warpgroup's share of a task; `loaded` is the number of blocks of keys that the team has used.
__device__ __forceinline__ void attend(const Shared& shared, const Task& task, u32 own, int group, int loaded, const u32* query_bias,
                                       const float* slopes, u16* out) {
    const int begin = task.begin, end = task.end, first = task.first, column = task.column;
    const int blocks = task.blocks();
    const int thread = threadIdx.x & 127, lane = thread & 31;
    const int row = (thread >> 5) * 16 + (lane & 15);
    u32 q[4][4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const u32 address = own + row * 128 + (((2 * k + (lane >> 4)) ^ (row & 7)) << 4);
        load_matrices(address, q[k]);
        if (query_bias) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 x = unpack(q[k][i]), b = unpack(__ldg(query_bias + column / 2 + k * 8 + i / 2 * 4 + (lane & 3)));
                q[k][i] = pack(x.x + b.x, x.y + b.y);
            }
        }
    }

    // Scores are the plain products. Their scale, and the factor from exp to exp2, are applied with
    // the exponential.
    const float scale = 1.4426950408889634f * (HEAD == 64 ? 0.125f : 0.17677669529663687f);
    // How much larger than the current reference, before the scale, a score must be to become the
    // new one. Weights are at most 256 then.
    const float rescale_threshold = 8.0f / scale;
#if ALIBI
    const float slope = slopes[column / 64] * 8.0f;
    // The weight of a score that is lower by more than this rounds to zero in fp16, and in bf16
    // does not change its row's sum.
    const float negligible = -25.0f / scale;
#endif
    // A thread's first query.
    const int query = first - begin + group * 64 + (thread >> 5) * 16 + lane / 4;
    float sums[SM90_HEADS][HEAD / 2], scores[32];
    float row_max[SM90_HEADS][2], row_sum[SM90_HEADS][2];
    // Queries of the next sequence take no part in decisions that are made for many rows together,
    // here and below: a sequence's result does not depend on its neighbour in the batch.
#pragma unroll
    for (int h = 0; h < SM90_HEADS; h++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            row_max[h][half] = query + half * 8 < end - begin ? -1e30f : 1e30f;
            row_sum[h][half] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < HEAD / 2; i++) sums[h][i] = 0.0f;
    }

    for (int step = 0; step < blocks; step++, loaded++) {
        const u32 keys = shared.keys(loaded);
        barrier_wait(shared.full(loaded), (loaded / SM90_RING) & 1);
        // Here, because no scores occupy registers yet.
        if (task.block(step) == blocks - 1) clear_values(keys + SM90_TILE, end - begin - (blocks - 1) * SM90_KEYS);
        const u64 key_matrix = matrix_descriptor(keys);
#pragma unroll
        for (int h = 0; h < SM90_HEADS; h++) {
            multiply_begin();
#pragma unroll
            for (int k = 0; k < HEAD / 16; k++) {
                const int at = h * (HEAD / 16) + k;
                multiply_64<0>(scores, q[at], key_matrix + 2 * at, k > 0);
            }
            multiply_commit();
            multiply_wait<0>();

            const int block = task.block(step);
            // A thread's first key of the block.
            const int key = block * SM90_KEYS + 2 * (lane & 3);
            // A term that all scores of a row have in common.
            float row_bias[2] = {0.0f, 0.0f};
#if ALIBI
            // The bias is linear where all keys are before the queries, or all after.
            const int side = block - (first - begin) / SM90_KEYS - group;
            const float side_slope = side < 0 ? slope : -slope;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float distance = (float)(query + half * 8 - key);
                if (side == 0) {
#pragma unroll
                    for (int n = 0; n < 8; n++)
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            float& score = scores[4 * n + 2 * half + i];
                            score = fmaf(-slope, fabsf(distance - (float)(8 * n + i)), score);
                        }
                } else {
                    row_bias[half] = -side_slope * distance;
#pragma unroll
                    for (int n = 0; n < 8; n++)
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            float& score = scores[4 * n + 2 * half + i];
                            score = fmaf(side_slope, (float)(8 * n + i), score);
                        }
                }
            }
#endif
            if (block == blocks - 1) {
                const int left = end - begin - key;
#pragma unroll
                for (int n = 0; n < 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        if (8 * n + i >= left) scores[4 * n + i] = scores[4 * n + 2 + i] = -1e30f;
            }
            // NaN stays NaN, which compares as not less, so that its block is not skipped.
            float block_max[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                block_max[half] = -1e30f;
#pragma unroll
                for (int n = 0; n < 8; n++)
                    block_max[half] = larger_or_nan(block_max[half], larger_or_nan(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
                block_max[half] += row_bias[half];
#pragma unroll
                for (int distance = 1; distance <= 2; distance *= 2)
                    block_max[half] = larger_or_nan(block_max[half], __shfl_xor_sync(0xffffffffu, block_max[half], distance));
                // Queries of the next sequence take no part in decisions for many rows.
                if (row_max[h][half] == 1e30f) block_max[half] = -1e30f;
            }
#if ALIBI
            if (side != 0 && all_of_group(block_max[0] - row_max[h][0] < negligible && block_max[1] - row_max[h][1] < negligible)) continue;
#endif
            if (__any_sync(0xffffffffu, block_max[0] - row_max[h][0] > rescale_threshold || block_max[1] - row_max[h][1] > rescale_threshold)) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float larger = fmaxf(row_max[h][half], block_max[half]);
                    const float rescale = exp2_fast((row_max[h][half] - larger) * scale);
                    row_max[h][half] = larger;
                    row_sum[h][half] *= rescale;
#pragma unroll
                    for (int n = 0; n < HEAD / 8; n++) {
                        sums[h][4 * n + 2 * half] *= rescale;
                        sums[h][4 * n + 2 * half + 1] *= rescale;
                    }
                }
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float offset = (row_bias[half] - row_max[h][half]) * scale;
#pragma unroll
                for (int n = 0; n < 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& score = scores[4 * n + 2 * half + i];
                        score = exp2_fast(fmaf(score, scale, offset));
                        row_sum[h][half] += score;
                    }
            }
            u32 p[4][4];
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int i = 0; i < 4; i++) p[k][i] = pack(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
            // 8 columns are 16 bytes: 1 in a descriptor's units.
            const u64 value_matrix = matrix_descriptor(keys + SM90_TILE) + h * (HEAD / 8);
            multiply_begin();
            // 16 keys are 16 rows: 2,048 bytes, 128 in a descriptor's units.
#pragma unroll
            for (int k = 0; k < 4; k++) add_values(sums[h], p[k], value_matrix + 128 * k);
            multiply_commit();
            multiply_wait<0>();
        }
        if (thread == 0) arrive(shared.empty(loaded));
    }

    float inverse_total[SM90_HEADS][2];
#pragma unroll
    for (int h = 0; h < SM90_HEADS; h++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = row_sum[h][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            inverse_total[h][half] = 1.0f / sum;
        }
    // Whole rows are put together in shared memory, in the place of this warpgroup's queries.
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
        const int h = n / (HEAD / 8);
        u32 o[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = 4 * (n % (HEAD / 8) + i / 2) + 2 * (i % 2);
            o[i] = pack(sums[h][at] * inverse_total[h][i % 2], sums[h][at + 1] * inverse_total[h][i % 2]);
        }
        store_matrices(own + row * 128 + (((n + (lane >> 4)) ^ (row & 7)) << 4), o[0], o[1], o[2], o[3]);
    }
    // A warp stores the rows that it wrote itself.
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = (thread >> 5) * 16 + i * 4 + lane / 8, chunk = lane % 8;
        const int token = first + group * 64 + r;
        uint4 values;
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(values.x), "=r"(values.y), "=r"(values.z), "=r"(values.w)
                     : "r"(own + r * 128 + ((chunk ^ (r & 7)) << 4))
                     : "memory");
        if (token < end) ((uint4*)out)[(u64)token * (HIDDEN / 8) + column / 8 + chunk] = values;
    }
}

// Queries and keys are the first 2 * HIDDEN columns of `queries_keys`, and values the last HIDDEN of
// `qkv`, [tokens, 3 * HIDDEN]: the same matrix, or queries and keys in one of their own. Both are
// read in boxes of 64 x 64. `query_bias` is added to the queries,
// unless it is null; a bias of the keys would add the same to all scores of a query and is left
// out. `out` is [tokens, HIDDEN]. `query_tiles` is tokens / 128 + sequences. `stream` is a number
// below STREAMS that no other launch has that may overlap with this one.
extern "C" __global__ void __launch_bounds__(640, 1)
    attention_sm90(const __grid_constant__ TensorMap queries_keys, const __grid_constant__ TensorMap qkv, const u32* query_bias,
                   const float* slopes, const int* starts, int sequences, int query_tiles, int stream, u16* out) {
    extern __shared__ __align__(1024) char dynamic[];
    const u32 base = shared_address(dynamic);
    if (threadIdx.x == 0) {
        for (int team = 0; team < 2; team++) {
            const Shared shared(base, team);
            for (int slot = 0; slot < SM90_RING; slot++) {
                barrier_init(shared.full(slot), 1);
                barrier_init(shared.empty(slot), 2);
            }
            for (int round = 0; round < 2; round++) {
                barrier_init(shared.arrived(round), 1);
                barrier_init(shared.free(round), 8);
            }
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();

    // A block begins with 96 registers a thread. The loading warps give some away, and the others
    // get them: 32 + 4 * 112 = 5 * 96.
    if (threadIdx.x >= 512) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        const int team = (threadIdx.x - 512) / 32;
        if (team < 2 && threadIdx.x % 32 == 0)
            load_tasks(Shared(base, team), &queries_keys, &qkv, starts, sequences, query_tiles, task_counters[stream]);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
    const Shared shared(base, threadIdx.x / 256);
    const int group = threadIdx.x / 128 % 2;
    int loaded = 0;
    for (int round = 0;; round++) {
        barrier_wait(shared.arrived(round), (round / 2) & 1);
        const Task task = read_task(shared.task(round));
        if (task.begin < 0) return;
        if (group < task.groups()) {
            attend(shared, task, shared.queries(round) + group * SM90_TILE, group, loaded, query_bias, slopes, out);
        } else if ((threadIdx.x & 127) == 0) {
            for (int block = 0; block < task.blocks(); block++) {
                barrier_wait(shared.full(loaded + block), ((loaded + block) / SM90_RING) & 1);
                arrive(shared.empty(loaded + block));
            }
        }
        loaded += task.blocks();
        // Writes of threads into the queries' buffer come before the next load into it.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
        if ((threadIdx.x & 31) == 0) arrive(shared.free(round));
    }
}
