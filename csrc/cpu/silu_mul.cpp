// silu_mul: the activation of a gated MLP, out = x0 / (1 + e^-x0) * x1.
#include "cpu/kernels.h"
#include "cpu/share.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

// Items of 128 columns, 8 vectors: small enough that one decode row is shared by the whole team.
constexpr int32_t kColumns = 128;

FASTSERVE_INLINE Vec silu_mul_lanes(Vec gate, Vec up) {
    const Vec sigmoid_inverse = add(splat(1.0f), exp(sub(zero(), gate)));
    return mul(div(gate, sigmoid_inverse), up);
}

}  // namespace

void silu_mul(const SiluMulArgs& args, const Worker& worker) {
    const int32_t items_per_row = (args.f + kColumns - 1) / kColumns;
    const Share share = share_of(static_cast<int64_t>(args.rows) * items_per_row, worker);
    for (int64_t item = share.begin; item < share.end; ++item) {
        const int64_t t = item / items_per_row;
        const int32_t begin = static_cast<int32_t>(item % items_per_row) * kColumns;
        const int32_t end = begin + kColumns < args.f ? begin + kColumns : args.f;
        const float* gate = args.x + t * args.ldx;
        const float* up = gate + args.f;
        float* out = args.out + t * args.ldo;
        int32_t i = begin;
        for (; i + kLanes <= end; i += kLanes) store(out + i, silu_mul_lanes(load(gate + i), load(up + i)));
        if (i < end)
            store_n(out + i, silu_mul_lanes(load_n(gate + i, end - i), load_n(up + i, end - i)), end - i);
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
