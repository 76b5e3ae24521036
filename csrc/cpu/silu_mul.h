// The activation of a gated MLP, for the op of its own and for the matmul that ends in it.
#pragma once

#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

FASTSERVE_INLINE Vec silu_mul_lanes(Vec gate, Vec up) {
    const Vec sigmoid_inverse = add(splat(1.0f), exp(sub(zero(), gate)));
    return mul(div(gate, sigmoid_inverse), up);
}

// out[i] = silu(gate[i]) * up[i] for i < n; out may be gate.
FASTSERVE_INLINE void silu_mul_columns(const float* gate, const float* up, int32_t n, float* out) {
    int32_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, silu_mul_lanes(load(gate + i), load(up + i)));
    if (i < n) store_n(out + i, silu_mul_lanes(load_n(gate + i, n - i), load_n(up + i, n - i)), n - i);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
