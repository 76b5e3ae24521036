// Roofs: independent chains of one instruction on registers, and a plain read of memory.
//
// The operands are loaded anew in every iteration, or a compiler would fold sums of equal terms. One load
// serves kChains instructions, so the loads hide behind them. Loops over chains are unrolled, so that the
// accumulators live in registers; they start apart, or equal chains would become one.
#include "cpu/peak.h"

#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

// 16 of 32 zmm: hides a latency of 5 cycles (vpdpbusd) on two ports, with room to spare.
constexpr int kChains = kNumRegisters / 2;

int64_t peak_f32(int64_t iterations, float* sink) {
    alignas(64) float operands[2][kLanes];
    for (int lane = 0; lane < kLanes; ++lane) operands[0][lane] = operands[1][lane] = sink[0];
    Vec acc[kChains];
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) acc[c] = splat(static_cast<float>(c));
    for (int64_t i = 0; i < iterations; ++i) {
        asm volatile("" : "+m"(operands));
        const Vec a = load(operands[0]);
        const Vec b = load(operands[1]);
#pragma GCC unroll 16
        for (int c = 0; c < kChains; ++c) acc[c] = fma(a, b, acc[c]);
    }
#pragma GCC unroll 16
    for (const Vec& chain : acc) sink[0] += reduce_add(chain);
    return iterations * kChains * kLanes * 2;
}

int64_t peak_bf16(int64_t iterations, float* sink) {
    alignas(64) uint16_t operands[2][2 * kLanes];
    for (int i = 0; i < 2 * kLanes; ++i) operands[0][i] = operands[1][i] = to_bf16(sink[0]);
    Vec acc[kChains];
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) acc[c] = splat(static_cast<float>(c));
    for (int64_t i = 0; i < iterations; ++i) {
        asm volatile("" : "+m"(operands));
        const VecI a = load(operands[0]);
        const VecI b = load(operands[1]);
#pragma GCC unroll 16
        for (int c = 0; c < kChains; ++c) acc[c] = dot_bf16(acc[c], a, b);
    }
#pragma GCC unroll 16
    for (const Vec& chain : acc) sink[0] += reduce_add(chain);
    return iterations * kChains * kLanes * 2 * 2;
}

int64_t peak_int8(int64_t iterations, float* sink) {
    alignas(64) uint8_t operands[2][4 * kLanes];
    for (int i = 0; i < 4 * kLanes; ++i) operands[0][i] = operands[1][i] = static_cast<uint8_t>(sink[0]);
    VecI acc[kChains];
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) acc[c] = splat(int32_t{c});
    for (int64_t i = 0; i < iterations; ++i) {
        asm volatile("" : "+m"(operands));
        const VecI a = load(operands[0]);
        const VecI b = load(operands[1]);
#pragma GCC unroll 16
        for (int c = 0; c < kChains; ++c) acc[c] = dot_u8(acc[c], a, b);
    }
#pragma GCC unroll 16
    for (const VecI& chain : acc) sink[0] += static_cast<float>(reduce_add(chain));
    return iterations * kChains * kLanes * 4 * 2;
}

void read_bytes(const uint8_t* data, int64_t bytes, float* sink) {
    VecI acc[kReadStep / 64];
#pragma GCC unroll 16
    for (VecI& chain : acc) chain = zero_i();
    for (int64_t at = 0; at < bytes; at += kReadStep)
#pragma GCC unroll 16
        for (int64_t c = 0; c < kReadStep / 64; ++c) acc[c] = bit_xor(acc[c], load(data + at + c * 64));
#pragma GCC unroll 16
    for (const VecI& chain : acc) sink[0] += static_cast<float>(reduce_add(chain));
}

}  // namespace

extern const PeakLoops peak_loops;
const PeakLoops peak_loops = {.f32 = peak_f32, .bf16 = peak_bf16, .int8 = peak_int8, .read = read_bytes};

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
