// rms_norm: adds the last layer's output to the residual stream and normalises it.
#include "cpu/kernels.h"
#include "cpu/share.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

// residual[i .. i + n) (+ x), stored back where x is given.
FASTSERVE_INLINE Vec updated(const float* x, float* residual, int32_t i, int n) {
    Vec value = load_n(residual + i, n);
    if (x) {
        value = add(value, load_n(x + i, n));
        store_n(residual + i, value, n);
    }
    return value;
}

// The order of the sum is fixed: four vectors in turn (one would wait 4 cycles for each fma), the rest into
// the first, then (0 + 1) + (2 + 3) and the tree of reduce_add.
float add_and_sum_squares(const float* x, float* residual, int32_t d) {
    Vec sums[4] = {zero(), zero(), zero(), zero()};
    int32_t i = 0;
    for (; i + 4 * kLanes <= d; i += 4 * kLanes) {
        for (int j = 0; j < 4; ++j) {
            const Vec value = updated(x, residual, i + j * kLanes, kLanes);
            sums[j] = fma(value, value, sums[j]);
        }
    }
    for (; i < d; i += kLanes) {
        const Vec value = updated(x, residual, i, d - i < kLanes ? d - i : kLanes);
        sums[0] = fma(value, value, sums[0]);
    }
    return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

void norm_row(const float* x, float* residual, const float* weight, float eps, int32_t d, float* out) {
    const float mean = add_and_sum_squares(x, residual, d) / static_cast<float>(d);
    const Vec scale = splat(1.0f / __builtin_sqrtf(mean + eps));
    int32_t i = 0;
    for (; i + kLanes <= d; i += kLanes)
        store(out + i, mul(mul(load(residual + i), scale), load(weight + i)));
    if (i < d) {
        const Vec value = mul(mul(load_n(residual + i, d - i), scale), load_n(weight + i, d - i));
        store_n(out + i, value, d - i);
    }
}

}  // namespace

void rms_norm(const RmsNormArgs& args, const Worker& worker) {
    const Share share = share_of(args.rows, worker);
    for (int64_t t = share.begin; t < share.end; ++t)
        norm_row(args.x ? args.x + t * args.ldx : nullptr, args.residual + t * args.ldr, args.weight,
                 args.eps, args.d, args.out + t * args.ldo);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
