// Floats to 8 bits and back, for links that are slower than this. Plain loops, for the compiler to vectorise.
#include "cpu/kernels.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

constexpr int32_t kBlock = WireBlock::kValues;
constexpr float kMaxCode = 127.0f;
constexpr float kRound =
    12582912.0f;  // 1.5 * 2^23: what is added to it loses its fraction, to the nearest even

// NaN if the block holds one, or an infinity.
float scale_of(const float* values) {
    float largest = 0.0f, poison = 0.0f;
    for (int32_t i = 0; i < kBlock; ++i) {
        const float magnitude = __builtin_fabsf(values[i]);
        largest = magnitude > largest ? magnitude : largest;
        poison += values[i] * 0.0f;
    }
    return largest / kMaxCode + poison;
}

void compress_block(const float* values, WireBlock& to) {
    const float scale = scale_of(values);
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    const bool is_tiny = !(inverse < 3.4e38f);  // a scale below the normal numbers: all become zero
    to.scale = is_tiny ? 0.0f : scale;
    for (int32_t i = 0; i < kBlock; ++i) {
        const float code = (values[i] * (is_tiny ? 0.0f : inverse) + kRound) - kRound;
        to.codes[i] = static_cast<int8_t>(code > kMaxCode ? kMaxCode : code > -kMaxCode ? code : -kMaxCode);
    }
}

}  // namespace

void compress(const CompressArgs& args) {
    const int64_t whole = args.count / kBlock, rest = args.count % kBlock;
    for (int64_t i = 0; i < whole; ++i) compress_block(args.from + i * kBlock, args.to[i]);
    if (rest == 0) return;
    float padded[kBlock] = {};
    for (int64_t i = 0; i < rest; ++i) padded[i] = args.from[whole * kBlock + i];
    compress_block(padded, args.to[whole]);
}

void expand(const ExpandArgs& args) {
    for (int64_t begin = 0; begin < args.count; begin += kBlock) {
        const WireBlock& block = args.from[begin / kBlock];
        const int64_t n = args.count - begin < kBlock ? args.count - begin : kBlock;
        for (int64_t i = 0; i < n; ++i) args.to[begin + i] = static_cast<float>(block.codes[i]) * block.scale;
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
