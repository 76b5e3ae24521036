// rms_norm: adds the last layer's output to the residual stream and normalises it.
#include "cpu/rms_norm.h"

#include "cpu/kernels.h"
#include "cpu/matmul_operand.h"
#include "cpu/share.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

// What threads share of a row: 8 vectors, whole blocks of an operand.
constexpr int32_t kColumns = 128;
static_assert(kColumns % kQuantBlock == 0);

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

// out[i] = residual[i] * scale * weight[i] for i < n.
void scale_columns(const float* residual, const float* weight, float scale, int32_t n, float* out) {
    int32_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        store(out + i, mul(mul(load(residual + i), splat(scale)), load(weight + i)));
    if (i < n) {
        const Vec value = mul(mul(load_n(residual + i, n - i), splat(scale)), load_n(weight + i, n - i));
        store_n(out + i, value, n - i);
    }
}

// Columns [begin, end) of a row; all of it is added to and summed.
void norm_columns(const RmsNormArgs& args, const OperandWriter& operand, int64_t t, int32_t begin,
                  int32_t end) {
    float* residual = args.residual + t * args.ldr;
    const float* x = args.x ? args.x + t * args.ldx : nullptr;
    const float mean = add_and_sum_squares(x, residual, args.d) / static_cast<float>(args.d);
    const float scale = 1.0f / __builtin_sqrtf(mean + args.eps);
    for (int32_t i = begin; i < end; i += kColumns) {
        const int32_t n = end - i < kColumns ? end - i : kColumns;
        float columns[kColumns];
        float* out = args.out ? args.out + t * args.ldo + i : columns;
        scale_columns(residual + i, args.weight + i, scale, n, out);
        operand.write(t, i, i + n, out);
    }
}

}  // namespace

void norm_rows(const RmsNormArgs& args, int32_t row_begin, int32_t row_end, const Worker& worker) {
    const OperandWriter operand(args.operand, args.rows, args.d);
    // A row that is only read may be divided: each thread sums all of it and writes its part, so that none
    // waits for the one that has the only row of a decode step. A row that is added to is one thread's.
    share_columns(row_end - row_begin, args.d, args.x ? args.d : kColumns, worker,
                  [&](int64_t row, int32_t begin, int32_t end) {
                      norm_columns(args, operand, row_begin + row, begin, end);
                  });
}

void rms_norm(const RmsNormArgs& args, const Worker& worker) {
    norm_rows(args, 0, args.rows, worker);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
