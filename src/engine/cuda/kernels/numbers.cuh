// What all kernels share: the model's number format, packed pairs of numbers, and reductions within
// a warp.
//
// Compiled at run time (NVRTC) for one model and one GPU, with sizes as constants: -DBF16=0|1,
// -DFP8=1 for the 8-bit format beside fp16 (sm_89 and newer), -DSILU=1 for SiLU in feed-forward
// layers, -DHIDDEN, and what each file lists at its head. No header of CUDA is included, so that
// none has to be installed on the user's machine: conversions are PTX.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// No kernel may turn an infinity or a NaN into a finite number, or an overflow of the model would
// go unnoticed. fmaxf and fminf return the other operand where one is NaN, and saturation returns
// 0, so they are used only where NaN reaches the result in another way.

// The larger of two numbers, and NaN if one of them is.
__device__ __forceinline__ float larger_or_nan(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}

// 1 / sqrt(x), and NaN instead of 0 where x overflowed.
__device__ __forceinline__ float rsqrt_or_nan(float x) { return fmaf(0.0f, x, rsqrtf(x)); }

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

// As `pack`, with NaN for infinity (which times zero is NaN); finite numbers stay as they are. For
// keys: an infinite key would otherwise get a weight of zero, and be missed, with every query for
// which its score is minus infinity.
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
// The scale of activations between the two dense layers of a feed-forward layer in fp8: defined
// together with FP8.
#ifndef FP8_SCALE
#define FP8_SCALE 1.0f
#endif

// Two numbers as fp8 e4m3 (sign, 4 bits of exponent, 3 of fraction) in 16 bits, the first in the
// low half. Numbers beyond its range of +-448 become NaN, so that the overflow is noticed.
__device__ __forceinline__ u32 pack_fp8(float low, float high) {
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

// The moments of a row of HIDDEN numbers (their sum, and the sum of their squares) come in so many
// parts, of 256 columns each.
#define PARTS ((HIDDEN + 255) / 256)

// The mean of a row, and the mean of its squares, from its moments, [rows, PARTS, 2].
__device__ __forceinline__ float2 row_means(const float2* moments, int row) {
    float2 all = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        const float2 own = __ldg(moments + (u64)row * PARTS + part);
        all.x += own.x, all.y += own.y;
    }
    return make_float2(all.x * (1.0f / HIDDEN), all.y * (1.0f / HIDDEN));
}

// 1 / standard deviation of a row with these means.
__device__ __forceinline__ float inverse_deviation(float2 means, float epsilon) {
    return rsqrt_or_nan(larger_or_nan(means.y - means.x * means.x, 0.0f) + epsilon);
}

// The standard normal distribution function, to 1e-5 where GELU needs it: an odd polynomial
// (minimax on +-4.4, weighted by |x|) that beyond that stays below 0 or above 1, where it is
// clamped. It does not use the special-function unit, so that it can overlap with the tensor cores.
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

// GELU as defined by the error function, not the tanh approximation. Saturation turns NaN into 0,
// which times the NaN of x is NaN again.
__device__ __forceinline__ float gelu(float x) { return x * normal_cdf(x); }

// x * sigmoid(x) (SiLU, Swish). For minus infinity it is NaN. A power beyond the range is infinite,
// and one over that is 0; CUDA's own functions spend several instructions on the numbers in
// between.
__device__ __forceinline__ float silu(float x) {
    float power, sigmoid;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(sigmoid) : "f"(1.0f + power));
    return x * sigmoid;
}

// The activation of the feed-forward layer.
#if SILU
#define ACTIVATION silu
#else
#define ACTIVATION gelu
#endif
