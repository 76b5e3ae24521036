// simd.h for AVX-512 (F, BW, VL, DQ, VNNI, BF16): one register per Vec.
#pragma once

// gcc 12 takes _mm512_undefined_*, which its own header feeds to masked forms, for a mistake (gcc bug
// 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// Vec-sized register sets of this ISA: what the accumulators, operands and temporaries of a tile must fit.
constexpr int kNumRegisters = 32;
// Of weights that are prefetched, by tiles of at least so many rows: while those compute, the hardware reads
// not far enough ahead (8 rows of q8: 227 us without, 141 so, which is what the products take); a single row
// it serves better alone (36 GB/s against 33).
constexpr int kAheadBytes = 16384, kAheadRows = 2;
constexpr bool kHasDotS16 = false;  // vpdpwssd is no faster than vpdpbusd for each of two digits
constexpr bool kDotU8TakesBytes = true;
constexpr int32_t kOffsetU8 = 0;
constexpr bool kRereads = false;

struct Vec {
    __m512 v;
};
struct VecI {
    __m512i v;
};

FASTSERVE_INLINE __mmask16 lanes_below(int n) {
    return static_cast<__mmask16>((1u << n) - 1);
}

FASTSERVE_INLINE Vec splat(float x) {
    return {_mm512_set1_ps(x)};
}
FASTSERVE_INLINE VecI splat(int32_t x) {
    return {_mm512_set1_epi32(x)};
}
FASTSERVE_INLINE Vec load(const float* p) {
    return {_mm512_loadu_ps(p)};
}
FASTSERVE_INLINE VecI load(const int32_t* p) {
    return {_mm512_loadu_si512(p)};
}
FASTSERVE_INLINE VecI load(const uint8_t* p) {
    return {_mm512_loadu_si512(p)};
}
FASTSERVE_INLINE VecI load(const int8_t* p) {
    return {_mm512_loadu_si512(p)};
}
FASTSERVE_INLINE VecI load(const uint16_t* p) {
    return {_mm512_loadu_si512(p)};
}
FASTSERVE_INLINE Vec load_n(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(lanes_below(n), p)};
}
FASTSERVE_INLINE void store(float* p, Vec a) {
    _mm512_storeu_ps(p, a.v);
}
FASTSERVE_INLINE void store(int32_t* p, VecI a) {
    _mm512_storeu_si512(p, a.v);
}
FASTSERVE_INLINE void store(uint8_t* p, VecI a) {
    _mm512_storeu_si512(p, a.v);
}
FASTSERVE_INLINE void stream(uint8_t* p, VecI a) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), a.v);
}
FASTSERVE_INLINE void stream_fence() {
    _mm_sfence();
}
FASTSERVE_INLINE void store_n(float* p, Vec a, int n) {
    _mm512_mask_storeu_ps(p, lanes_below(n), a.v);
}
// The low byte / the low 16 bits of each lane.
FASTSERVE_INLINE void store_low8(int8_t* p, VecI a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
FASTSERVE_INLINE void store_low16(uint16_t* p, VecI a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}

FASTSERVE_INLINE Vec add(Vec a, Vec b) {
    return {_mm512_add_ps(a.v, b.v)};
}
FASTSERVE_INLINE Vec sub(Vec a, Vec b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
FASTSERVE_INLINE Vec mul(Vec a, Vec b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
FASTSERVE_INLINE Vec div(Vec a, Vec b) {
    return {_mm512_div_ps(a.v, b.v)};
}
FASTSERVE_INLINE Vec sqrt(Vec a) {
    return {_mm512_sqrt_ps(a.v)};
}
FASTSERVE_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
// a > b ? a : b and a < b ? a : b, so b where one is NaN.
FASTSERVE_INLINE Vec max(Vec a, Vec b) {
    return {_mm512_max_ps(a.v, b.v)};
}
FASTSERVE_INLINE Vec min(Vec a, Vec b) {
    return {_mm512_min_ps(a.v, b.v)};
}
FASTSERVE_INLINE Vec abs(Vec a) {
    return {_mm512_abs_ps(a.v)};
}

FASTSERVE_INLINE VecI add(VecI a, VecI b) {
    return {_mm512_add_epi32(a.v, b.v)};
}
FASTSERVE_INLINE VecI sub(VecI a, VecI b) {
    return {_mm512_sub_epi32(a.v, b.v)};
}
FASTSERVE_INLINE VecI mul(VecI a, VecI b) {
    return {_mm512_mullo_epi32(a.v, b.v)};
}
FASTSERVE_INLINE VecI max(VecI a, VecI b) {
    return {_mm512_max_epi32(a.v, b.v)};
}
FASTSERVE_INLINE VecI bit_and(VecI a, VecI b) {
    return {_mm512_and_si512(a.v, b.v)};
}
FASTSERVE_INLINE VecI bit_or(VecI a, VecI b) {
    return {_mm512_or_si512(a.v, b.v)};
}
FASTSERVE_INLINE VecI bit_xor(VecI a, VecI b) {
    return {_mm512_xor_si512(a.v, b.v)};
}
template <int kBits>
FASTSERVE_INLINE VecI shift_left(VecI a) {
    return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
FASTSERVE_INLINE VecI shift_right(VecI a) {
    return {_mm512_srli_epi32(a.v, kBits)};
}
template <int kBits>
FASTSERVE_INLINE VecI shift_right_signed(VecI a) {
    return {_mm512_srai_epi32(a.v, kBits)};
}

FASTSERVE_INLINE VecI as_int(Vec a) {
    return {_mm512_castps_si512(a.v)};
}
FASTSERVE_INLINE Vec as_float(VecI a) {
    return {_mm512_castsi512_ps(a.v)};
}
FASTSERVE_INLINE Vec to_float(VecI a) {
    return {_mm512_cvtepi32_ps(a.v)};
}
// Nearest even, for |a| < 2^31.
FASTSERVE_INLINE VecI to_int(Vec a) {
    return {_mm512_cvtps_epi32(a.v)};
}

// Lanes below n from a, the others from b.
FASTSERVE_INLINE Vec select_below(int n, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(lanes_below(n), b.v, a.v)};
}
// Bit i: a[i] > b[i].
FASTSERVE_INLINE uint32_t greater_bits(Vec a, Vec b) {
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
}
FASTSERVE_INLINE VecI select_nan(Vec a, VecI if_nan, VecI otherwise) {
    return {_mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), otherwise.v, if_nan.v)};
}

// Lane i: a[i ^ kDistance], for a distance of 1, 2, 4 or 8.
template <int kDistance>
FASTSERVE_INLINE Vec swap_lanes(Vec a) {
    if constexpr (kDistance == 1) return {_mm512_permute_ps(a.v, 0xb1)};
    if constexpr (kDistance == 2) return {_mm512_permute_ps(a.v, 0x4e)};
    if constexpr (kDistance == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
    return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
}

// Lane i with lane i + 8, then i + 4, i + 2, i + 1.
FASTSERVE_INLINE float reduce_add(Vec a) {
    const __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
FASTSERVE_INLINE float reduce_max(Vec a) {
    const __m256 x = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

FASTSERVE_INLINE int32_t reduce_add(VecI a) {
    return _mm512_reduce_add_epi32(a.v);
}
FASTSERVE_INLINE int32_t reduce_max(VecI a) {
    return _mm512_reduce_max_epi32(a.v);
}

FASTSERVE_INLINE Vec load_bf16(const uint16_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
// Stores values as store_bf16 does, and returns them so rounded. Denormals become 0, as in dot_bf16.
FASTSERVE_INLINE Vec round_stored(uint16_t* p, Vec values) {
    const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values.v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16))};
}
// Lane i: the pair (a[i], b[i]).
FASTSERVE_INLINE VecI load_pairs(const uint16_t* a, const uint16_t* b) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                                           39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    return {_mm512_permutex2var_epi16(
        _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a))), order,
        _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b))))};
}
// Pairs of bfloat16, low[i] and high[i], as dot_bf16 takes them. Denormals become 0, as there.
FASTSERVE_INLINE VecI to_bf16_pairs(Vec low, Vec high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return {_mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)))};
}
FASTSERVE_INLINE Vec load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
FASTSERVE_INLINE float from_half(uint16_t x) {
    return _cvtsh_ss(x);
}

FASTSERVE_INLINE VecI operand_u8(VecI u) {
    return u;
}
// acc[i] + sum over j < 4 of u[4 i + j] * s[4 i + j], exactly, for -64 <= s < 64.
FASTSERVE_INLINE VecI dot_u8(VecI acc, VecI u, VecI s) {
    return {_mm512_dpbusd_epi32(acc.v, u.v, s.v)};
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
// acc[i] + a[2 i + 1] b[2 i + 1] + a[2 i] b[2 i], added in this order, for bfloat16 a and b. Denormals count
// as 0.
FASTSERVE_INLINE Vec dot_bf16(Vec acc, VecI a, VecI b) {
    return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
