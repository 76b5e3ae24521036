// The vector vocabulary of an ISA: 16 lanes everywhere, and the same bits everywhere.
//
//   Vec   16 floats
//   VecI  64 bytes, seen as 16 int32, 64 u8/s8 or 32 bfloat16
//
// Every operation gives the same result on every ISA: fma rounds once, reductions add in one fixed tree, exp
// is one polynomial. Names without a type work on both where that makes sense. `n` in *_n is the number of
// lanes that memory has (0..16, others read as 0 or are not written). Integer adds and products wrap.
// kNumRegisters says how many Vecs a tile may keep at hand.
//
//   load load_n store store_n splat broadcast4 zero zero_i       add sub mul div fma sqrt max min
//   reduce_add reduce_max swap_lanes  exp exp_weight  select_below
//   to_int to_float as_int as_float greater_bits  bit_and bit_or bit_xor shift_left<> shift_right<>
//   load_bf16 store_bf16 round_stored load_pairs load_half to_bf16 from_bf16 from_half to_bf16_pairs
//   operand_u8 dot_u8 dot_s16 dot_bf16 low_nibbles high_nibbles begin_u4 dot_u4 end_u4
//   store_low8 store_low16 abs  stream stream_fence  prefetch reread
//
// stream is store past the caches, to memory aligned to 64; stream_fence orders it before what is stored
// next.
//
// dot_u8(acc, operand_u8(u), s) is acc[i] + sum over j < 4 of (u[4 i + j] - kOffsetU8) * s[4 i + j],
// exactly, for -64 <= s < 64, and for |s| < 128 where kDotU8TakesBytes: kOffsetU8 is 128 where an instruction
// wants both sides signed, else 0. dot_s16 is there where kHasDotS16 is true.
//
// dot_u4(running, u, s) takes u < 16 as it is, at most 16 times for -64 <= s < 64 or 8 times for |s| < 128
// between begin_u4(sum), which gives a running sum of the ISA's own width, and end_u4(sum, running), the sum
// of it all.
#pragma once

#include <cstdint>
#include <cstring>

#define FASTSERVE_INLINE [[gnu::always_inline]] inline

#if defined(FASTSERVE_ISA_avx512)
#include "cpu/simd/avx512.h"
#elif defined(FASTSERVE_ISA_avx2)
#include "cpu/simd/avx2.h"
#elif defined(FASTSERVE_ISA_neon) || defined(FASTSERVE_ISA_neon_bf16)
#include "cpu/simd/neon.h"
#else
#include "cpu/simd/portable.h"
#endif

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

constexpr int kLanes = 16;

// Into L2, from which lines come in time. Into L1 a core can have some twenty on their way: 12.6 GB/s of
// DRAM, a third of what it reads so (q8, 8 rows: 149 us, now 80).
FASTSERVE_INLINE void prefetch(const void* p) {
    __builtin_prefetch(p, 0, 2);
}

// p, as memory that was not read before: where kRereads is true, what was made of it is made again, not kept.
FASTSERVE_INLINE const uint8_t* reread(const uint8_t* p) {
    if constexpr (kRereads) asm("" : "+r"(p));
    return p;
}

FASTSERVE_INLINE Vec zero() {
    return splat(0.0f);
}
FASTSERVE_INLINE VecI zero_i() {
    return splat(int32_t{0});
}

// The 4 bytes at p in every lane.
FASTSERVE_INLINE VecI broadcast4(const void* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return splat(word);
}

// 16 packed nibble pairs per 16 bytes: the low halves and the high halves of 64 bytes, as 64 u8.
FASTSERVE_INLINE VecI low_nibbles(VecI bytes) {
    return bit_and(bytes, splat(int32_t{0x0f0f0f0f}));
}
FASTSERVE_INLINE VecI high_nibbles(VecI bytes) {
    return low_nibbles(shift_right<4>(bytes));
}

// e^x with a relative error below 2e-7; 0 below -104, inf above 89, NaN for NaN.
//
// x = n ln2 + r with |r| <= ln2 / 2 and ln2 in two parts (Cody & Waite), e^r by the degree-6 polynomial of
// Cephes' expf, and 2^n in two factors, so that results next to overflow and denormal results come out right.
FASTSERVE_INLINE Vec exp(Vec x) {
    constexpr float kRound =
        12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, found in the low bits
    constexpr int32_t kRoundBits = 0x4b400000;
    x = min(splat(89.0f), max(splat(-105.0f), x));  // in this order NaN passes
    const Vec shifted = fma(x, splat(1.44269504088896341f), splat(kRound));
    const Vec n = sub(shifted, splat(kRound));
    Vec r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    Vec p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), splat(1.0f));
    const VecI exponent = sub(as_int(shifted), splat(kRoundBits));
    const VecI half = shift_right_signed<1>(exponent);
    const VecI rest = sub(exponent, half);
    const VecI bias = splat(int32_t{127});
    p = mul(p, as_float(shift_left<23>(add(half, bias))));
    return mul(p, as_float(shift_left<23>(add(rest, bias))));
}

// e^x for x <= 0, with a relative error below 4e-6, e^-87 below -87, NaN for a NaN whose low 9 bits are 0: a
// weight that is rounded to bfloat16 next, in half of exp's instructions. e^0 is 1.
FASTSERVE_INLINE Vec exp_weight(Vec x) {
    constexpr float kRound = 12582912.0f;  // as in exp; its bits vanish in the shift
    x = max(splat(-87.0f), x);
    const Vec shifted = fma(x, splat(1.44269504088896341f), splat(kRound));
    const Vec r = fma(sub(shifted, splat(kRound)), splat(-0.693147180559945309f), x);
    Vec p = fma(splat(0.041513681411743164f), r, splat(0.16787591576576233f));  // minimax for |r| <= ln2 / 2
    p = fma(p, r, splat(0.5000302195549011f));
    p = fma(p, r, splat(0.9999668002128601f));
    p = fma(p, r, splat(1.0f));
    return as_float(add(as_int(p), shift_left<23>(as_int(shifted))));
}

// Rounds to nearest even; NaN stays NaN.
FASTSERVE_INLINE uint16_t to_bf16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

FASTSERVE_INLINE float from_bf16(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    __builtin_memcpy(&result, &bits, sizeof result);
    return result;
}

// As to_bf16, in the low half of each lane.
FASTSERVE_INLINE VecI to_bf16(Vec values) {
    const VecI bits = as_int(values);
    const VecI odd = bit_and(shift_right<16>(bits), splat(int32_t{1}));
    const VecI rounded = shift_right<16>(add(add(bits, splat(int32_t{0x7fff})), odd));
    const VecI quieted = bit_or(shift_right<16>(bits), splat(int32_t{0x40}));
    return select_nan(values, quieted, rounded);
}

FASTSERVE_INLINE void store_bf16(uint16_t* p, Vec values) {
    store_low16(p, to_bf16(values));
}

#if !defined(FASTSERVE_ISA_avx512)
// Pairs of bfloat16, low[i] and high[i], as dot_bf16 takes them. Denormals may become 0, as there.
FASTSERVE_INLINE VecI to_bf16_pairs(Vec low, Vec high) {
    return bit_or(to_bf16(low), shift_left<16>(to_bf16(high)));
}
// Stores values as store_bf16 does, and returns them so rounded. Denormals may become 0, as in dot_bf16.
FASTSERVE_INLINE Vec round_stored(uint16_t* p, Vec values) {
    const VecI rounded = to_bf16(values);
    store_low16(p, rounded);
    return as_float(shift_left<16>(rounded));
}
#endif

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
