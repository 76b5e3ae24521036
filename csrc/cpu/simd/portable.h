// simd.h for any CPU, in the vector extension of gcc and clang: four 16-byte vectors per Vec.
#pragma once

#include <cstdint>

#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16)));
using Uint4 = uint32_t __attribute__((vector_size(16)));

// Vec-sized register sets of this ISA: what the accumulators, operands and temporaries of a tile must fit.
// aarch64 has 8, of which CPUs with dot products make use in neon.h.
constexpr int kNumRegisters = 4;
constexpr int kAheadBytes = 0, kAheadRows = 1;  // of weights that are prefetched
constexpr bool kHasDotS16 = true;
constexpr bool kDotU8TakesBytes = true;
constexpr int32_t kOffsetU8 = 0;
constexpr bool kRereads = false;

struct Vec {
    Float4 q[4];
};
struct VecI {
    Int4 q[4];
};

// result.q[i] = expression in i, for each of the four vectors.
#define FASTSERVE_EACH(Type, expression) \
    Type result;                         \
    for (int i = 0; i < 4; ++i) {        \
        result.q[i] = (expression);      \
    }                                    \
    return result

FASTSERVE_INLINE Vec splat(float x) {
    FASTSERVE_EACH(Vec, (Float4{x, x, x, x}));
}
FASTSERVE_INLINE VecI splat(int32_t x) {
    FASTSERVE_EACH(VecI, (Int4{x, x, x, x}));
}

template <class Result>
FASTSERVE_INLINE Result load_bytes(const void* p) {
    Result result;
    __builtin_memcpy(&result, p, sizeof result);
    return result;
}
FASTSERVE_INLINE Vec load(const float* p) {
    return load_bytes<Vec>(p);
}
FASTSERVE_INLINE VecI load(const int32_t* p) {
    return load_bytes<VecI>(p);
}
FASTSERVE_INLINE VecI load(const uint8_t* p) {
    return load_bytes<VecI>(p);
}
FASTSERVE_INLINE VecI load(const int8_t* p) {
    return load_bytes<VecI>(p);
}
FASTSERVE_INLINE VecI load(const uint16_t* p) {
    return load_bytes<VecI>(p);
}
FASTSERVE_INLINE Vec load_n(const float* p, int n) {
    float lanes[16] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
}
FASTSERVE_INLINE void store(float* p, Vec a) {
    __builtin_memcpy(p, &a, sizeof a);
}
FASTSERVE_INLINE void store(int32_t* p, VecI a) {
    __builtin_memcpy(p, &a, sizeof a);
}
FASTSERVE_INLINE void store(uint8_t* p, VecI a) {
    __builtin_memcpy(p, &a, sizeof a);
}
FASTSERVE_INLINE void stream(uint8_t* p, VecI a) {
    __builtin_memcpy(p, &a, sizeof a);
}
FASTSERVE_INLINE void stream_fence() {}
FASTSERVE_INLINE void store_n(float* p, Vec a, int n) {
    float lanes[16];
    store(lanes, a);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
// The low byte / the low 16 bits of each lane.
FASTSERVE_INLINE void store_low8(int8_t* p, VecI a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.q[i / 4][i % 4]);
}
FASTSERVE_INLINE void store_low16(uint16_t* p, VecI a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(a.q[i / 4][i % 4]);
}

FASTSERVE_INLINE Vec add(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, a.q[i] + b.q[i]);
}
FASTSERVE_INLINE Vec sub(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, a.q[i] - b.q[i]);
}
FASTSERVE_INLINE Vec mul(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, a.q[i] * b.q[i]);
}
FASTSERVE_INLINE Vec div(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, a.q[i] / b.q[i]);
}
FASTSERVE_INLINE Vec sqrt(Vec a) {
    FASTSERVE_EACH(Vec, (Float4{__builtin_sqrtf(a.q[i][0]), __builtin_sqrtf(a.q[i][1]),
                                __builtin_sqrtf(a.q[i][2]), __builtin_sqrtf(a.q[i][3])}));
}
#if defined(__SSE2__)
// a b + c rounded once, without an fma instruction and without libm's call per lane. In double the product is
// exact; the sum is rounded to odd (a result that is not exact gets a last bit of 1), after which rounding to
// float is as if from the exact sum, since 53 >= 24 + 2 bits.
// Source: Boldo & Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using
// rounding to odd", section 5; the error of the sum: Knuth, TAOCP vol. 2, 4.2.2, theorem B.
FASTSERVE_INLINE __m128 fma2(__m128 a, __m128 b, __m128 c) {  // the low two lanes
    const __m128d product = _mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b)), addend = _mm_cvtps_pd(c);
    const __m128d sum = _mm_add_pd(product, addend), added = _mm_sub_pd(sum, product);
    const __m128d error = _mm_add_pd(_mm_sub_pd(product, _mm_sub_pd(sum, added)), _mm_sub_pd(addend, added));
    const __m128d nothing = _mm_setzero_pd();  // error is NaN where the sum is: equal to neither case below
    const __m128d above = _mm_cmpgt_pd(error, nothing), below = _mm_cmplt_pd(error, nothing);
    // A last bit of 0 becomes 1: a unit away from zero where the error has the sign of the sum, else towards
    // it.
    const __m128i bits = _mm_castpd_si128(sum), one = _mm_set1_epi64x(1);
    const __m128i last = _mm_and_si128(bits, one);
    const __m128i inexact = _mm_castpd_si128(_mm_or_pd(above, below));
    const __m128i even = _mm_andnot_si128(last, _mm_and_si128(inexact, one));
    const __m128i shrinks = _mm_castpd_si128(_mm_xor_pd(below, _mm_cmplt_pd(sum, nothing)));
    const __m128i step = _mm_sub_epi64(even, _mm_slli_epi64(_mm_and_si128(even, shrinks), 1));
    return _mm_cvtpd_ps(_mm_castsi128_pd(_mm_add_epi64(bits, step)));
}
FASTSERVE_INLINE Float4 fma4(Float4 a, Float4 b, Float4 c) {
    const __m128 x = (__m128)a, y = (__m128)b, z = (__m128)c;
    const __m128 low = fma2(x, y, z);
    const __m128 high = fma2(_mm_movehl_ps(x, x), _mm_movehl_ps(y, y), _mm_movehl_ps(z, z));
    return (Float4)_mm_movelh_ps(low, high);
}
#else
FASTSERVE_INLINE Float4 fma4(Float4 a, Float4 b, Float4 c) {
#if defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return Float4{__builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1]),
                  __builtin_fmaf(a[2], b[2], c[2]), __builtin_fmaf(a[3], b[3], c[3])};
#endif
}
#endif
FASTSERVE_INLINE Vec fma(Vec a, Vec b, Vec c) {
    FASTSERVE_EACH(Vec, fma4(a.q[i], b.q[i], c.q[i]));
}
// a > b ? a : b and a < b ? a : b, so b where one is NaN.
FASTSERVE_INLINE Vec max(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, a.q[i] > b.q[i] ? a.q[i] : b.q[i]);
}
FASTSERVE_INLINE Vec min(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, a.q[i] < b.q[i] ? a.q[i] : b.q[i]);
}

FASTSERVE_INLINE VecI as_int(Vec a) {
    FASTSERVE_EACH(VecI, (Int4)(a.q[i]));
}
FASTSERVE_INLINE Vec as_float(VecI a) {
    FASTSERVE_EACH(Vec, (Float4)(a.q[i]));
}
FASTSERVE_INLINE Vec to_float(VecI a) {
    FASTSERVE_EACH(Vec, __builtin_convertvector(a.q[i], Float4));
}
// Nearest even, for |a| < 2^31.
FASTSERVE_INLINE VecI to_int(Vec a) {
    FASTSERVE_EACH(VecI, (Int4{(int32_t)__builtin_lrintf(a.q[i][0]), (int32_t)__builtin_lrintf(a.q[i][1]),
                               (int32_t)__builtin_lrintf(a.q[i][2]), (int32_t)__builtin_lrintf(a.q[i][3])}));
}

FASTSERVE_INLINE VecI add(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, (Int4)((Uint4)a.q[i] + (Uint4)b.q[i]));
}
FASTSERVE_INLINE VecI sub(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, (Int4)((Uint4)a.q[i] - (Uint4)b.q[i]));
}
FASTSERVE_INLINE VecI mul(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, (Int4)((Uint4)a.q[i] * (Uint4)b.q[i]));
}
FASTSERVE_INLINE VecI max(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, a.q[i] > b.q[i] ? a.q[i] : b.q[i]);
}
FASTSERVE_INLINE VecI bit_and(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, a.q[i] & b.q[i]);
}
FASTSERVE_INLINE VecI bit_or(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, a.q[i] | b.q[i]);
}
FASTSERVE_INLINE VecI bit_xor(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, a.q[i] ^ b.q[i]);
}
template <int kBits>
FASTSERVE_INLINE VecI shift_left(VecI a) {
    FASTSERVE_EACH(VecI, (Int4)((Uint4)a.q[i] << kBits));
}
template <int kBits>
FASTSERVE_INLINE VecI shift_right(VecI a) {
    FASTSERVE_EACH(VecI, (Int4)((Uint4)a.q[i] >> kBits));
}
template <int kBits>
FASTSERVE_INLINE VecI shift_right_signed(VecI a) {
    FASTSERVE_EACH(VecI, a.q[i] >> kBits);
}
FASTSERVE_INLINE Vec abs(Vec a) {
    return as_float(bit_and(as_int(a), splat(int32_t{0x7fffffff})));
}

// Lanes below n from a, the others from b.
FASTSERVE_INLINE Vec select_below(int n, Vec a, Vec b) {
    const Int4 lane = {0, 1, 2, 3};
    FASTSERVE_EACH(Vec, lane + 4 * i < n ? a.q[i] : b.q[i]);
}
// Bit i: a[i] > b[i].
FASTSERVE_INLINE uint32_t greater_bits(Vec a, Vec b) {
    uint32_t bits = 0;
    for (int i = 0; i < 16; ++i) bits |= static_cast<uint32_t>(a.q[i / 4][i % 4] > b.q[i / 4][i % 4]) << i;
    return bits;
}
FASTSERVE_INLINE VecI select_nan(Vec a, VecI if_nan, VecI otherwise) {
    FASTSERVE_EACH(VecI, a.q[i] != a.q[i] ? if_nan.q[i] : otherwise.q[i]);
}

// Lane i: a[i ^ kDistance], for a distance of 1, 2, 4 or 8.
template <int kDistance>
FASTSERVE_INLINE Vec swap_lanes(Vec a) {
    FASTSERVE_EACH(Vec, kDistance == 1   ? __builtin_shufflevector(a.q[i], a.q[i], 1, 0, 3, 2)
                        : kDistance == 2 ? __builtin_shufflevector(a.q[i], a.q[i], 2, 3, 0, 1)
                                         : a.q[i ^ kDistance / 4]);
}

// Lane i with lane i + 8, then i + 4, i + 2, i + 1.
FASTSERVE_INLINE float reduce_add(Vec a) {
    const Float4 x = (a.q[0] + a.q[2]) + (a.q[1] + a.q[3]);
    return (x[0] + x[2]) + (x[1] + x[3]);
}
FASTSERVE_INLINE float reduce_max(Vec a) {
    const Float4 x = a.q[0] > a.q[2] ? a.q[0] : a.q[2];
    const Float4 y = a.q[1] > a.q[3] ? a.q[1] : a.q[3];
    const Float4 z = x > y ? x : y;
    const float even = z[0] > z[2] ? z[0] : z[2];
    const float odd = z[1] > z[3] ? z[1] : z[3];
    return even > odd ? even : odd;
}

FASTSERVE_INLINE int32_t reduce_add(VecI a) {
    const Uint4 x = ((Uint4)a.q[0] + (Uint4)a.q[1]) + ((Uint4)a.q[2] + (Uint4)a.q[3]);
    return static_cast<int32_t>((x[0] + x[1]) + (x[2] + x[3]));
}
FASTSERVE_INLINE int32_t reduce_max(VecI a) {
    int32_t largest = a.q[0][0];
    for (int i = 1; i < 16; ++i) largest = largest > a.q[i / 4][i % 4] ? largest : a.q[i / 4][i % 4];
    return largest;
}

// 16 u16 at p, widened.
FASTSERVE_INLINE VecI load_u16(const uint16_t* p) {
    FASTSERVE_EACH(VecI, (Int4{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]}));
}
FASTSERVE_INLINE Vec load_bf16(const uint16_t* p) {
    return as_float(shift_left<16>(load_u16(p)));
}
// Lane i: the pair (a[i], b[i]).
FASTSERVE_INLINE VecI load_pairs(const uint16_t* a, const uint16_t* b) {
    return bit_or(load_u16(a), shift_left<16>(load_u16(b)));
}
// The exponent is rebased by a product with 2^112, which is exact for denormal halves too.
FASTSERVE_INLINE Vec half_to_float(VecI bits) {
    const VecI sign = shift_left<16>(bit_and(bits, splat(int32_t{0x8000})));
    const VecI rest = shift_left<13>(bit_and(bits, splat(int32_t{0x7fff})));
    const VecI value = as_int(mul(as_float(rest), splat(0x1p112f)));
    const VecI special = bit_or(rest, splat(int32_t{0x7f800000}));
    VecI result;
    for (int i = 0; i < 4; ++i)
        result.q[i] = (rest.q[i] >= 0x0f800000 ? special.q[i] : value.q[i]) | sign.q[i];
    return as_float(result);
}
FASTSERVE_INLINE Vec load_half(const uint16_t* p) {
    return half_to_float(load_u16(p));
}
FASTSERVE_INLINE float from_half(uint16_t x) {
    return half_to_float(splat(int32_t{x})).q[0][0];
}

// Lane i: the sum over j < 4 of u[4 i + j] * s[4 i + j], for u8 and s8.
FASTSERVE_INLINE Int4 dot4(Int4 u, Int4 s) {
#if defined(__SSE2__)
    const __m128i a = (__m128i)u, b = (__m128i)s;
    const __m128i even =
        _mm_madd_epi16(_mm_and_si128(a, _mm_set1_epi16(0xff)), _mm_srai_epi16(_mm_slli_epi16(b, 8), 8));
    const __m128i odd = _mm_madd_epi16(_mm_srli_epi16(a, 8), _mm_srai_epi16(b, 8));
    return (Int4)_mm_add_epi32(even, odd);
#else
    return (u & 0xff) * (s << 24 >> 24) + (u >> 8 & 0xff) * (s << 16 >> 24) +
           (u >> 16 & 0xff) * (s << 8 >> 24) + (u >> 24 & 0xff) * (s >> 24);
#endif
}
FASTSERVE_INLINE VecI operand_u8(VecI u) {
    return u;
}
// acc[i] + sum over j < 4 of u[4 i + j] * s[4 i + j], exactly, for -64 <= s < 64.
FASTSERVE_INLINE VecI dot_u8(VecI acc, VecI u, VecI s) {
    FASTSERVE_EACH(VecI, acc.q[i] + dot4(u.q[i], s.q[i]));
}
FASTSERVE_INLINE VecI begin_u4(VecI sum) {
    return sum;
}
FASTSERVE_INLINE VecI dot_u4(VecI running, VecI u, VecI s) {
    return dot_u8(running, u, s);
}
FASTSERVE_INLINE VecI end_u4(VecI, VecI running) {
    return running;
}
// Lane i: a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1] for s16.
FASTSERVE_INLINE Int4 dot2(Int4 a, Int4 b) {
#if defined(__SSE2__)
    return (Int4)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}
// acc[i] + a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1], exactly, for s16 a and b.
FASTSERVE_INLINE VecI dot_s16(VecI acc, VecI a, VecI b) {
    FASTSERVE_EACH(VecI, acc.q[i] + dot2(a.q[i], b.q[i]));
}
// acc[i] + a[2 i + 1] b[2 i + 1] + a[2 i] b[2 i], added in this order, for bfloat16 a and b.
FASTSERVE_INLINE Vec dot_bf16(Vec acc, VecI a, VecI b) {
    const VecI odd = splat(static_cast<int32_t>(0xffff0000));
    acc = fma(as_float(bit_and(a, odd)), as_float(bit_and(b, odd)), acc);
    return fma(as_float(shift_left<16>(a)), as_float(shift_left<16>(b)), acc);
}

#undef FASTSERVE_EACH

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
