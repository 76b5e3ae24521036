// Phase 1 of a matmul: activations in the number format that the weights ask for.
#include "cpu/matmul.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

struct Range {
    int64_t begin, end;
};

Range part_of(int64_t total, const Worker& worker) {
    return {total * worker.thread_idx / worker.num_threads,
            total * (worker.thread_idx + 1) / worker.num_threads};
}

void quantise_block(const float* x, int8_t* codes, float* scale, int32_t* base, WeightType type) {
    const Vec low = load(x), high = load(x + kLanes);
    // As integers, magnitudes are ordered like floats, and NaN is above all: it ends up in the scale.
    const VecI magnitudes = max(as_int(abs(low)), as_int(abs(high)));
    const float largest = __builtin_bit_cast(float, reduce_max(magnitudes));
    *scale = largest / 127.0f;
    const Vec divisor = splat(*scale == 0 ? 1.0f : *scale), limit = splat(127.0f), lower = splat(-127.0f);
    // The limits matter only for denormal scales, which are coarse.
    const VecI low_codes = to_int(min(limit, max(lower, div(low, divisor))));
    const VecI high_codes = to_int(min(limit, max(lower, div(high, divisor))));
    store_low8(codes, low_codes);
    store_low8(codes + kLanes, high_codes);
    const int32_t sum = reduce_add(add(low_codes, high_codes));
    if (type == WeightType::q4m)
        *base = __builtin_bit_cast(int32_t, *scale* static_cast<float>(sum));
    else
        *base = sum * (type == WeightType::q8 ? -128 : -8);
}

void quantise(const MatmulArgs& args, const Worker& worker) {
    const int64_t k = args.w.k, blocks = k / kQuantBlock;
    const QuantisedRows to = quantised_rows(args);
    const Range range = part_of(args.rows * blocks, worker);
    for (int64_t i = range.begin; i < range.end; ++i) {
        const float* x = args.x + i / blocks * args.ldx + i % blocks * kQuantBlock;
        quantise_block(x, const_cast<int8_t*>(to.codes) + i * kQuantBlock, const_cast<float*>(to.scales) + i,
                       const_cast<int32_t*>(to.bases) + i, args.w.type);
    }
}

// Rows are padded with zero to an even number of weights.
void round_bf16(const MatmulArgs& args, const Worker& worker) {
    const int64_t k = args.w.k, ld = (k + 1) / 2 * 2, vectors = (k + kLanes - 1) / kLanes;
    const Range range = part_of(args.rows * vectors, worker);
    for (int64_t i = range.begin; i < range.end; ++i) {
        const int64_t row = i / vectors, column = i % vectors * kLanes;
        const float* x = args.x + row * args.ldx + column;
        uint16_t* to = static_cast<uint16_t*>(args.scratch) + row * ld + column;
        if (column + kLanes <= k) {
            store_bf16(to, load(x));
            continue;
        }
        for (int64_t j = 0; j < ld - column; ++j) to[j] = column + j < k ? to_bf16(x[j]) : uint16_t{0};
    }
}

}  // namespace

QuantisedRows quantised_rows(const MatmulArgs& args) {
    const int64_t weights = int64_t{args.rows} * args.w.k;
    const auto* codes = static_cast<const int8_t*>(args.scratch);
    const auto* scales = reinterpret_cast<const float*>(codes + (weights + 63) / 64 * 64);
    return {codes, scales, reinterpret_cast<const int32_t*>(scales + weights / kQuantBlock)};
}

void matmul_prepare(const MatmulArgs& args, const Worker& worker) {
    switch (args.w.type) {
        case WeightType::f32:
        case WeightType::f16:
            return;
        case WeightType::bf16:
            round_bf16(args, worker);
            break;
        case WeightType::q8:
        case WeightType::q4:
        case WeightType::q4m:
            quantise(args, worker);
            break;
    }
    team_barrier(worker);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
