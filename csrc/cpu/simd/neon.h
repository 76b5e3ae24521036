// simd.h for NEON with dot products (Armv8.2 and FEAT_DotProd): four registers per Vec. Where the compiler
// may use FEAT_BF16 as well (the ISA neon_bf16), bfloat16 is multiplied without being widened first.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// Vec-sized register sets of this ISA: what the accumulators, operands and temporaries of a tile must fit.
constexpr int kNumRegisters = 8;
constexpr int kAheadBytes = 0, kAheadRows = 1;  // of weights that are prefetched
constexpr bool kHasDotS16 = false;              // four instructions would do what two of dot_u8 do
constexpr bool kDotU8TakesBytes = true;
constexpr int32_t kOffsetU8 = 128;
// Of a tile of 6 rows gcc 12 stored 400 registers on the stack, most of them codes for the second digit; 120
// so.
constexpr bool kRereads = true;

struct Vec {
    float32x4_t q[4];
};
struct VecI {
    int32x4_t q[4];
};

// result.q[i] = expression in i, for each of the four registers.
#define FASTSERVE_EACH(Type, expression) \
    Type result;                         \
    for (int i = 0; i < 4; ++i) {        \
        result.q[i] = (expression);      \
    }                                    \
    return result

FASTSERVE_INLINE uint32x4_t as_unsigned(int32x4_t a) {
    return vreinterpretq_u32_s32(a);
}
FASTSERVE_INLINE int32x4_t as_signed(uint32x4_t a) {
    return vreinterpretq_s32_u32(a);
}
// Lanes of the register i of a Vec that are below n.
FASTSERVE_INLINE uint32x4_t lanes_below(int n, int i) {
    constexpr int32_t kLane[] = {0, 1, 2, 3};
    return vcltq_s32(vld1q_s32(kLane), vdupq_n_s32(n - 4 * i));
}

FASTSERVE_INLINE Vec splat(float x) {
    FASTSERVE_EACH(Vec, vdupq_n_f32(x));
}
FASTSERVE_INLINE VecI splat(int32_t x) {
    FASTSERVE_EACH(VecI, vdupq_n_s32(x));
}
FASTSERVE_INLINE VecI load_bytes(const void* p) {
    FASTSERVE_EACH(VecI, vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p) + 16 * i)));
}
FASTSERVE_INLINE Vec load(const float* p) {
    FASTSERVE_EACH(Vec, vld1q_f32(p + 4 * i));
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
    if (n == 16) return load(p);
    float lanes[16] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
}
FASTSERVE_INLINE void store(float* p, Vec a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.q[i]);
}
FASTSERVE_INLINE void store(int32_t* p, VecI a) {
    for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, a.q[i]);
}
FASTSERVE_INLINE void store(uint8_t* p, VecI a) {
    for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, vreinterpretq_u8_s32(a.q[i]));
}
// Arm cores see by themselves that stores stream, and stop allocating lines for them.
FASTSERVE_INLINE void stream(uint8_t* p, VecI a) {
    store(p, a);
}
FASTSERVE_INLINE void stream_fence() {}
FASTSERVE_INLINE void store_n(float* p, Vec a, int n) {
    if (n == 16) return store(p, a);
    float lanes[16];
    store(lanes, a);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
// The low 16 bits of each lane, in order.
FASTSERVE_INLINE uint16x8_t low16(VecI a, int half) {
    return vuzp1q_u16(vreinterpretq_u16_s32(a.q[2 * half]), vreinterpretq_u16_s32(a.q[2 * half + 1]));
}
FASTSERVE_INLINE void store_low16(uint16_t* p, VecI a) {
    vst1q_u16(p, low16(a, 0));
    vst1q_u16(p + 8, low16(a, 1));
}
FASTSERVE_INLINE void store_low8(int8_t* p, VecI a) {
    vst1q_s8(p, vuzp1q_s8(vreinterpretq_s8_u16(low16(a, 0)), vreinterpretq_s8_u16(low16(a, 1))));
}

FASTSERVE_INLINE Vec add(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, vaddq_f32(a.q[i], b.q[i]));
}
FASTSERVE_INLINE Vec sub(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, vsubq_f32(a.q[i], b.q[i]));
}
FASTSERVE_INLINE Vec mul(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, vmulq_f32(a.q[i], b.q[i]));
}
FASTSERVE_INLINE Vec div(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, vdivq_f32(a.q[i], b.q[i]));
}
FASTSERVE_INLINE Vec sqrt(Vec a) {
    FASTSERVE_EACH(Vec, vsqrtq_f32(a.q[i]));
}
FASTSERVE_INLINE Vec fma(Vec a, Vec b, Vec c) {
    FASTSERVE_EACH(Vec, vfmaq_f32(c.q[i], a.q[i], b.q[i]));
}
// a > b ? a : b and a < b ? a : b, so b where one is NaN (which fmax would hand on).
FASTSERVE_INLINE float32x4_t max4(float32x4_t a, float32x4_t b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
FASTSERVE_INLINE Vec max(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, max4(a.q[i], b.q[i]));
}
FASTSERVE_INLINE Vec min(Vec a, Vec b) {
    FASTSERVE_EACH(Vec, vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]));
}
FASTSERVE_INLINE Vec abs(Vec a) {
    FASTSERVE_EACH(Vec, vabsq_f32(a.q[i]));
}

FASTSERVE_INLINE VecI add(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, vaddq_s32(a.q[i], b.q[i]));
}
FASTSERVE_INLINE VecI sub(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, vsubq_s32(a.q[i], b.q[i]));
}
FASTSERVE_INLINE VecI mul(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, vmulq_s32(a.q[i], b.q[i]));
}
FASTSERVE_INLINE VecI max(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, vmaxq_s32(a.q[i], b.q[i]));
}
FASTSERVE_INLINE VecI bit_and(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, vandq_s32(a.q[i], b.q[i]));
}
FASTSERVE_INLINE VecI bit_or(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, vorrq_s32(a.q[i], b.q[i]));
}
FASTSERVE_INLINE VecI bit_xor(VecI a, VecI b) {
    FASTSERVE_EACH(VecI, veorq_s32(a.q[i], b.q[i]));
}
template <int kBits>
FASTSERVE_INLINE VecI shift_left(VecI a) {
    FASTSERVE_EACH(VecI, vshlq_n_s32(a.q[i], kBits));
}
template <int kBits>
FASTSERVE_INLINE VecI shift_right(VecI a) {
    FASTSERVE_EACH(VecI, as_signed(vshrq_n_u32(as_unsigned(a.q[i]), kBits)));
}
template <int kBits>
FASTSERVE_INLINE VecI shift_right_signed(VecI a) {
    FASTSERVE_EACH(VecI, vshrq_n_s32(a.q[i], kBits));
}

FASTSERVE_INLINE VecI as_int(Vec a) {
    FASTSERVE_EACH(VecI, vreinterpretq_s32_f32(a.q[i]));
}
FASTSERVE_INLINE Vec as_float(VecI a) {
    FASTSERVE_EACH(Vec, vreinterpretq_f32_s32(a.q[i]));
}
FASTSERVE_INLINE Vec to_float(VecI a) {
    FASTSERVE_EACH(Vec, vcvtq_f32_s32(a.q[i]));
}
// Nearest even, for |a| < 2^31.
FASTSERVE_INLINE VecI to_int(Vec a) {
    FASTSERVE_EACH(VecI, vcvtnq_s32_f32(a.q[i]));
}

// Lanes below n from a, the others from b.
FASTSERVE_INLINE Vec select_below(int n, Vec a, Vec b) {
    FASTSERVE_EACH(Vec, vbslq_f32(lanes_below(n, i), a.q[i], b.q[i]));
}
// Bit i: a[i] > b[i].
FASTSERVE_INLINE uint32_t greater_bits(Vec a, Vec b) {
    constexpr uint32_t kBits[] = {1, 2, 4, 8};
    const uint32x4_t bits = vld1q_u32(kBits);
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) result |= vaddvq_u32(vandq_u32(vcgtq_f32(a.q[i], b.q[i]), bits)) << 4 * i;
    return result;
}
FASTSERVE_INLINE VecI select_nan(Vec a, VecI if_nan, VecI otherwise) {
    FASTSERVE_EACH(VecI, vbslq_s32(vceqq_f32(a.q[i], a.q[i]), otherwise.q[i], if_nan.q[i]));
}

// Lane i: a[i ^ kDistance], for a distance of 1, 2, 4 or 8.
template <int kDistance>
FASTSERVE_INLINE Vec swap_lanes(Vec a) {
    FASTSERVE_EACH(Vec, kDistance == 1   ? vrev64q_f32(a.q[i])
                        : kDistance == 2 ? vextq_f32(a.q[i], a.q[i], 2)
                                         : a.q[i ^ kDistance / 4]);
}

// Lane i with lane i + 8, then i + 4, i + 2, i + 1.
FASTSERVE_INLINE float reduce_add(Vec a) {
    const float32x4_t x = vaddq_f32(vaddq_f32(a.q[0], a.q[2]), vaddq_f32(a.q[1], a.q[3]));
    const float32x2_t y = vadd_f32(vget_low_f32(x), vget_high_f32(x));
    return vget_lane_f32(y, 0) + vget_lane_f32(y, 1);
}
FASTSERVE_INLINE float reduce_max(Vec a) {
    const float32x4_t x = max4(max4(a.q[0], a.q[2]), max4(a.q[1], a.q[3]));
    const float32x2_t low = vget_low_f32(x), high = vget_high_f32(x);
    const float32x2_t y = vbsl_f32(vcgt_f32(low, high), low, high);
    const float even = vget_lane_f32(y, 0), odd = vget_lane_f32(y, 1);
    return even > odd ? even : odd;
}

FASTSERVE_INLINE int32_t reduce_add(VecI a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.q[0], a.q[1]), vaddq_s32(a.q[2], a.q[3])));
}
FASTSERVE_INLINE int32_t reduce_max(VecI a) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.q[0], a.q[1]), vmaxq_s32(a.q[2], a.q[3])));
}

FASTSERVE_INLINE Vec load_bf16(const uint16_t* p) {
    FASTSERVE_EACH(Vec, vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p + 4 * i)), 16)));
}
// Lane i: the pair (a[i], b[i]).
FASTSERVE_INLINE VecI load_pairs(const uint16_t* a, const uint16_t* b) {
    VecI pairs;
    for (int i = 0; i < 4; i += 2) {
        const uint16x8x2_t zipped = vzipq_u16(vld1q_u16(a + 4 * i), vld1q_u16(b + 4 * i));
        pairs.q[i] = vreinterpretq_s32_u16(zipped.val[0]);
        pairs.q[i + 1] = vreinterpretq_s32_u16(zipped.val[1]);
    }
    return pairs;
}
FASTSERVE_INLINE Vec load_half(const uint16_t* p) {
    FASTSERVE_EACH(Vec, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
FASTSERVE_INLINE float from_half(uint16_t x) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x))), 0);
}

// acc[i] + sum over j < 4 of a[4 i + j] * b[4 i + j], exactly, for s8 a and b: sdot knows no unsigned side.
FASTSERVE_INLINE VecI dot_bytes(VecI acc, VecI a, VecI b) {
    FASTSERVE_EACH(VecI, vdotq_s32(acc.q[i], vreinterpretq_s8_s32(a.q[i]), vreinterpretq_s8_s32(b.q[i])));
}
FASTSERVE_INLINE VecI operand_u8(VecI u) {
    return bit_xor(u, splat(static_cast<int32_t>(0x80808080)));
}
FASTSERVE_INLINE VecI dot_u8(VecI acc, VecI operand, VecI s) {
    return dot_bytes(acc, operand, s);
}
FASTSERVE_INLINE VecI begin_u4(VecI sum) {
    return sum;
}
FASTSERVE_INLINE VecI dot_u4(VecI running, VecI u, VecI s) {
    return dot_bytes(running, u, s);
}
FASTSERVE_INLINE VecI end_u4(VecI, VecI running) {
    return running;
}
// acc[i] + a[2 i + 1] b[2 i + 1] + a[2 i] b[2 i], added in this order, for bfloat16 a and b. bfdot would
// round otherwise; bfmlalt and bfmlalb are an fma each.
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
FASTSERVE_INLINE float32x4_t dot2(float32x4_t acc, bfloat16x8_t a, bfloat16x8_t b) {
    return vbfmlalbq_f32(vbfmlaltq_f32(acc, a, b), a, b);
}
FASTSERVE_INLINE Vec dot_bf16(Vec acc, VecI a, VecI b) {
    FASTSERVE_EACH(Vec, dot2(acc.q[i], vreinterpretq_bf16_s32(a.q[i]), vreinterpretq_bf16_s32(b.q[i])));
}
#else
FASTSERVE_INLINE Vec dot_bf16(Vec acc, VecI a, VecI b) {
    const VecI odd = splat(static_cast<int32_t>(0xffff0000));
    acc = fma(as_float(bit_and(a, odd)), as_float(bit_and(b, odd)), acc);
    return fma(as_float(shift_left<16>(a)), as_float(shift_left<16>(b)), acc);
}
#endif

#undef FASTSERVE_EACH

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
