// simd.h for AVX2 with FMA and F16C: two registers per Vec.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// Vec-sized register sets of this ISA: what the accumulators, operands and temporaries of a tile must fit.
constexpr int kNumRegisters = 8;
// Of weights that are prefetched. What is computed with a line takes so many instructions that no load behind
// it is begun in time: of weights from DRAM one core of a Zen 3 read 7.7 GB/s without, 9.4 so, which is its
// roof.
constexpr int kAheadBytes = 16384, kAheadRows = 1;
constexpr bool kHasDotS16 = true;
constexpr bool kDotU8TakesBytes = false;  // maddubs saturates
constexpr int32_t kOffsetU8 = 0;
constexpr bool kRereads = false;

struct Vec {
    __m256 lo, hi;
};
struct VecI {
    __m256i lo, hi;
};

// All ones in the lanes below n.
FASTSERVE_INLINE VecI lanes_below(int n) {
    const __m256i count = _mm256_set1_epi32(n);
    return {_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
            _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}
FASTSERVE_INLINE VecI load_bytes(const void* p) {
    const auto* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
FASTSERVE_INLINE void store_bytes(void* p, VecI a) {
    auto* q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, a.lo);
    _mm256_storeu_si256(q + 1, a.hi);
}

FASTSERVE_INLINE Vec splat(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
FASTSERVE_INLINE VecI splat(int32_t x) {
    return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
FASTSERVE_INLINE Vec load(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
FASTSERVE_INLINE VecI load(const int32_t* p) {
    return load_bytes(p);
}
FASTSERVE_INLINE VecI load(const uint8_t* p) {
    return load_bytes(p);
}
FASTSERVE_INLINE VecI load(const int8_t* p) {
    return load_bytes(p);
}
FASTSERVE_INLINE VecI load(const uint16_t* p) {
    return load_bytes(p);
}
FASTSERVE_INLINE Vec load_n(const float* p, int n) {
    const VecI mask = lanes_below(n);
    return {_mm256_maskload_ps(p, mask.lo), _mm256_maskload_ps(p + 8, mask.hi)};
}
FASTSERVE_INLINE void store(float* p, Vec a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
FASTSERVE_INLINE void store(int32_t* p, VecI a) {
    store_bytes(p, a);
}
FASTSERVE_INLINE void store(uint8_t* p, VecI a) {
    store_bytes(p, a);
}
FASTSERVE_INLINE void stream(uint8_t* p, VecI a) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), a.lo);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p) + 1, a.hi);
}
FASTSERVE_INLINE void stream_fence() {
    _mm_sfence();
}
FASTSERVE_INLINE void store_n(float* p, Vec a, int n) {
    const VecI mask = lanes_below(n);
    _mm256_maskstore_ps(p, mask.lo, a.lo);
    _mm256_maskstore_ps(p + 8, mask.hi, a.hi);
}
// The low 16 bits of each lane, in order.
FASTSERVE_INLINE __m256i low16(VecI a) {
    const __m256i mask = _mm256_set1_epi32(0xffff);
    const __m256i mixed = _mm256_packus_epi32(_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask));
    return _mm256_permute4x64_epi64(mixed, 0xd8);
}
FASTSERVE_INLINE void store_low16(uint16_t* p, VecI a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), low16(a));
}
FASTSERVE_INLINE void store_low8(int8_t* p, VecI a) {
    const __m256i words = _mm256_and_si256(low16(a), _mm256_set1_epi16(0xff));
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

FASTSERVE_INLINE Vec add(Vec a, Vec b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
FASTSERVE_INLINE Vec sub(Vec a, Vec b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
FASTSERVE_INLINE Vec mul(Vec a, Vec b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
FASTSERVE_INLINE Vec div(Vec a, Vec b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
FASTSERVE_INLINE Vec sqrt(Vec a) {
    return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)};
}
FASTSERVE_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
// a > b ? a : b and a < b ? a : b, so b where one is NaN.
FASTSERVE_INLINE Vec max(Vec a, Vec b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
FASTSERVE_INLINE Vec min(Vec a, Vec b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
FASTSERVE_INLINE Vec abs(Vec a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}

FASTSERVE_INLINE VecI add(VecI a, VecI b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
FASTSERVE_INLINE VecI sub(VecI a, VecI b) {
    return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
FASTSERVE_INLINE VecI mul(VecI a, VecI b) {
    return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
}
FASTSERVE_INLINE VecI max(VecI a, VecI b) {
    return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
FASTSERVE_INLINE VecI bit_and(VecI a, VecI b) {
    return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
FASTSERVE_INLINE VecI bit_or(VecI a, VecI b) {
    return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
FASTSERVE_INLINE VecI bit_xor(VecI a, VecI b) {
    return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)};
}
template <int kBits>
FASTSERVE_INLINE VecI shift_left(VecI a) {
    return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
template <int kBits>
FASTSERVE_INLINE VecI shift_right(VecI a) {
    return {_mm256_srli_epi32(a.lo, kBits), _mm256_srli_epi32(a.hi, kBits)};
}
template <int kBits>
FASTSERVE_INLINE VecI shift_right_signed(VecI a) {
    return {_mm256_srai_epi32(a.lo, kBits), _mm256_srai_epi32(a.hi, kBits)};
}

FASTSERVE_INLINE VecI as_int(Vec a) {
    return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)};
}
FASTSERVE_INLINE Vec as_float(VecI a) {
    return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
FASTSERVE_INLINE Vec to_float(VecI a) {
    return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
// Nearest even, for |a| < 2^31.
FASTSERVE_INLINE VecI to_int(Vec a) {
    return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}

// Lanes below n from a, the others from b.
FASTSERVE_INLINE Vec select_below(int n, Vec a, Vec b) {
    const Vec mask = as_float(lanes_below(n));
    return {_mm256_blendv_ps(b.lo, a.lo, mask.lo), _mm256_blendv_ps(b.hi, a.hi, mask.hi)};
}
// Bit i: a[i] > b[i].
FASTSERVE_INLINE uint32_t greater_bits(Vec a, Vec b) {
    const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ));
    const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ));
    return static_cast<uint32_t>(lo | hi << 8);
}
FASTSERVE_INLINE VecI select_nan(Vec a, VecI if_nan, VecI otherwise) {
    const __m256i lo = _mm256_castps_si256(_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q));
    const __m256i hi = _mm256_castps_si256(_mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q));
    return {_mm256_blendv_epi8(otherwise.lo, if_nan.lo, lo), _mm256_blendv_epi8(otherwise.hi, if_nan.hi, hi)};
}

// Lane i: a[i ^ kDistance], for a distance of 1, 2, 4 or 8.
template <int kDistance>
FASTSERVE_INLINE Vec swap_lanes(Vec a) {
    if constexpr (kDistance == 1) return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)};
    if constexpr (kDistance == 2) return {_mm256_permute_ps(a.lo, 0x4e), _mm256_permute_ps(a.hi, 0x4e)};
    if constexpr (kDistance == 4)
        return {_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1)};
    return {a.hi, a.lo};
}

// Lane i with lane i + 8, then i + 4, i + 2, i + 1.
FASTSERVE_INLINE float reduce_add(Vec a) {
    const __m256 x = _mm256_add_ps(a.lo, a.hi);
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
FASTSERVE_INLINE float reduce_max(Vec a) {
    const __m256 x = _mm256_max_ps(a.lo, a.hi);
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

FASTSERVE_INLINE int32_t reduce_add(VecI a) {
    const __m256i x = _mm256_add_epi32(a.lo, a.hi);
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}
FASTSERVE_INLINE int32_t reduce_max(VecI a) {
    const __m256i x = _mm256_max_epi32(a.lo, a.hi);
    __m128i y = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}

FASTSERVE_INLINE Vec load_bf16(const uint16_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    const VecI wide = {_mm256_cvtepu16_epi32(_mm_loadu_si128(q)),
                       _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
    return as_float(shift_left<16>(wide));
}
// Lane i: the pair (a[i], b[i]).
FASTSERVE_INLINE VecI load_pairs(const uint16_t* a, const uint16_t* b) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    const __m256i low = _mm256_unpacklo_epi16(first, second), high = _mm256_unpackhi_epi16(first, second);
    return {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
}
FASTSERVE_INLINE Vec load_half(const uint16_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
FASTSERVE_INLINE float from_half(uint16_t x) {
    return _cvtsh_ss(x);
}

FASTSERVE_INLINE VecI operand_u8(VecI u) {
    return u;
}
// acc[i] + sum over j < 4 of u[4 i + j] * s[4 i + j], exactly, for -64 <= s < 64: no pair of products leaves
// 16 bits (2 * 255 * 64 = 32640), so vpmaddubsw does not saturate.
FASTSERVE_INLINE VecI dot_u8(VecI acc, VecI u, VecI s) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(_mm256_maddubs_epi16(u.lo, s.lo), ones)),
            _mm256_add_epi32(acc.hi, _mm256_madd_epi16(_mm256_maddubs_epi16(u.hi, s.hi), ones))};
}
// The pairs of products of u < 16 fit 16 bits (16 * 2 * 15 * 64 = 30720, 8 * 2 * 15 * 127 = 30480): widened
// at the end alone.
struct Running {
    VecI words;
};
FASTSERVE_INLINE Running begin_u4(VecI) {
    return {splat(int32_t{0})};
}
FASTSERVE_INLINE Running dot_u4(Running running, VecI u, VecI s) {
    return {{_mm256_add_epi16(running.words.lo, _mm256_maddubs_epi16(u.lo, s.lo)),
             _mm256_add_epi16(running.words.hi, _mm256_maddubs_epi16(u.hi, s.hi))}};
}
FASTSERVE_INLINE VecI end_u4(VecI sum, Running running) {
    const __m256i ones = _mm256_set1_epi16(1);
    return add(sum, {_mm256_madd_epi16(running.words.lo, ones), _mm256_madd_epi16(running.words.hi, ones)});
}
// acc[i] + a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1], exactly, for s16 a and b.
FASTSERVE_INLINE VecI dot_s16(VecI acc, VecI a, VecI b) {
    return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, b.lo)),
            _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, b.hi))};
}
// acc[i] + a[2 i + 1] b[2 i + 1] + a[2 i] b[2 i], added in this order, for bfloat16 a and b.
FASTSERVE_INLINE Vec dot_bf16(Vec acc, VecI a, VecI b) {
    const VecI odd = splat(static_cast<int32_t>(0xffff0000));
    acc = fma(as_float(bit_and(a, odd)), as_float(bit_and(b, odd)), acc);
    return fma(as_float(shift_left<16>(a)), as_float(shift_left<16>(b)), acc);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
