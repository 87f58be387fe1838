// What all kernels share: the model's number format, packed pairs of it, and reductions within a warp.
//
// Compiled at run time (NVRTC) for one model and one GPU, with sizes as constants: -DBF16=0|1, -DFP8=1 for the 8-bit format beside fp16
// (sm_89 and newer), -DHIDDEN, and what each file names at its head. No header of CUDA's is included, so that none needs to be found on the user's machine: conversions are PTX.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// No kernel makes a number of what is infinite or none, or nobody would know that a model overflowed: fmaxf and fminf give the other
// number where one is NaN, and saturation gives 0, so that each stands only where NaN comes through on another way.

// The larger of two numbers, and NaN if one of them is.
__device__ __forceinline__ float larger_or_nan(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}

// One over the square root, and NaN instead of 0 where x overflowed.
__device__ __forceinline__ float over_root(float x) { return fmaf(0.0f, x, rsqrtf(x)); }

// Two numbers in one register, the first in the low half.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 pair;
#if BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}

// As `pack`, with NaN for infinity: times zero it is NaN, and what is finite stays what it is. For keys, of which an infinite one would
// otherwise weigh nothing with every query for which its score is minus infinity.
__device__ __forceinline__ u32 pack_or_nan(float low, float high) {
    const u32 pair = pack(low, high);
    u32 same;
#if BF16
    asm("fma.rn.bf16x2 %0, %1, %2, %1;" : "=r"(same) : "r"(pair), "r"(0u));
#else
    asm("fma.rn.f16x2 %0, %1, %2, %1;" : "=r"(same) : "r"(pair), "r"(0u));
#endif
    return same;
}

__device__ __forceinline__ float2 unpack(u32 pair) {
    float2 both;
#if BF16
    both.x = __uint_as_float(pair << 16);
    both.y = __uint_as_float(pair & 0xffff0000u);
#else
    asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(both.x), "=f"(both.y)
        : "r"(pair));
#endif
    return both;
}

#ifndef FP8
#define FP8 0
#endif
// By how much activations between the two dense layers of a feed-forward layer are larger in 8 bits: given with FP8.
#ifndef EIGHT_SCALE
#define EIGHT_SCALE 1.0f
#endif

// Two numbers as e4m3 (sign, 4 bits of exponent, 3 of fraction) in 16 bits, the first in the low half. What is beyond its range
// of +-448 becomes no number, so that it is noticed.
__device__ __forceinline__ u32 pack_eights(float low, float high) {
    u16 pair = 0;
#if FP8
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    if (!(fabsf(low) <= 448.0f)) pair |= 0x7f;
    if (!(fabsf(high) <= 448.0f)) pair |= 0x7f00;
#endif
    return pair;
}

__device__ __forceinline__ float single(u16 number) { return unpack(number).x; }

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// The moments of a row of HIDDEN numbers, their sum and the sum of their squares, come in so many parts, of 256 columns each.
#define PARTS ((HIDDEN + 255) / 256)

// The mean of a row, and that of its squares, from its moments, [rows, PARTS, 2].
__device__ __forceinline__ float2 means_of(const float2* moments, int row) {
    float2 all = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        const float2 own = __ldg(moments + (u64)row * PARTS + part);
        all.x += own.x, all.y += own.y;
    }
    return make_float2(all.x * (1.0f / HIDDEN), all.y * (1.0f / HIDDEN));
}

// One over the deviation of a row of these means.
__device__ __forceinline__ float over_deviation(float2 means, float epsilon) {
    return over_root(larger_or_nan(means.y - means.x * means.x, 0.0f) + epsilon);
}

// The standard normal distribution function, to 1e-5 where GELU needs it: an odd polynomial (minimax on +-4.4, weighted by |x|)
// that from there on stays beyond 0 and 1, where it is cut off. No special-function unit, so that it hides behind tensor cores.
__device__ __forceinline__ float normal_cdf(float x) {
    float u = x * x;
    float p = 3.450914769e-11f;
    p = fmaf(p, u, -3.656632603e-09f);
    p = fmaf(p, u, 1.707775785e-07f);
    p = fmaf(p, u, -4.664957855e-06f);
    p = fmaf(p, u, 8.366878502e-05f);
    p = fmaf(p, u, -1.051239085e-03f);
    p = fmaf(p, u, 9.630684219e-03f);
    p = fmaf(p, u, -6.605706558e-02f);
    p = fmaf(p, u, 3.987514008e-01f);
    return __saturatef(fmaf(p, x, 0.5f));
}

// GELU by the error function's definition, not the tanh approximation. Saturation makes a zero of NaN, which times NaN is NaN.
__device__ __forceinline__ float gelu(float x) { return x * normal_cdf(x); }
