// Activations in the number format that the weights ask for.
#include "cpu/matmul_operand.h"

#include "cpu/matmul_tiles.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

// The limits matter only for denormal scales, which are coarse.
FASTSERVE_INLINE VecI to_codes(Vec quotients, float limit) {
    return to_int(min(splat(limit), max(splat(-limit), quotients)));
}

struct Codes {
    VecI first, second;
    float scale;
    int32_t sum;
};

// Codes up to max_code.
FASTSERVE_INLINE Codes quantise_block(const float* x, int32_t max_code) {
    // As integers, magnitudes are ordered like floats, and NaN is above all: it ends up in the scale.
    const VecI magnitudes = max(as_int(abs(load(x))), as_int(abs(load(x + kLanes))));
    const auto limit = static_cast<float>(max_code);
    Codes codes;
    codes.scale = __builtin_bit_cast(float, reduce_max(magnitudes)) / limit;
    const Vec divisor = splat(codes.scale == 0 ? 1.0f : codes.scale);
    codes.first = to_codes(div(load(x), divisor), limit);
    codes.second = to_codes(div(load(x + kLanes), divisor), limit);
    codes.sum = reduce_add(add(codes.first, codes.second));
    return codes;
}

// What the integer products lack. offset: what they take from the codes of q8 weights by themselves.
FASTSERVE_INLINE int32_t base_of(int32_t sum, WeightType type, int32_t offset) {
    return sum * (type == WeightType::q8 ? offset - 128 : -8);
}
template <int32_t kOffset>
FASTSERVE_INLINE int32_t base_of(const Codes& codes, WeightType type) {
    if (type == WeightType::q4m)
        return __builtin_bit_cast(int32_t, codes.scale* static_cast<float>(codes.sum));
    return base_of(codes.sum, type, kOffset);
}

// Block `block` of a row.
FASTSERVE_INLINE void store_codes(QuantisedBlock* row, int32_t block, int32_t, WeightType type,
                                  const Codes& codes) {
    QuantisedBlock& to = row[block];
    store_digits(codes.first, to.high, to.low);
    store_digits(codes.second, to.high + kLanes, to.low + kLanes);
    to.scale = codes.scale;
    to.base = base_of<kOffsetU8>(codes, type);
}

FASTSERVE_INLINE void store_codes(WideBlock* row, int32_t block, int32_t, WeightType type,
                                  const Codes& codes) {
    WideBlock& to = row[block];
    uint64_t fours[kQuantBlock / 4];
    store_low16(reinterpret_cast<uint16_t*>(fours), codes.first);
    store_low16(reinterpret_cast<uint16_t*>(fours + kLanes / 4), codes.second);
    for (uint64_t& four : fours)
        four = (four & 0xffff00000000ffff) | (four & 0xffff0000) << 16 | (four >> 16 & 0xffff0000);
    __builtin_memcpy(to.codes, fours, sizeof fours);
    to.scale = codes.scale;
    to.base = base_of<0>(codes, type);
}

FASTSERVE_INLINE void store_codes(BytePair* row, int32_t block, int32_t num_blocks, WeightType type,
                                  const Codes& codes) {
    BytePair& to = row[block / 2];
    const int32_t half = block % 2;
    store_low8(to.codes[half], codes.first);
    store_low8(to.codes[half] + kLanes, codes.second);
    to.scale[half] = codes.scale;
    to.base[half] = base_of(codes.sum, type, kOffsetU8);
    to.sum[half] = to_bf16(codes.scale * static_cast<float>(codes.sum));
    if (half == 0 && block + 1 == num_blocks) to.sum[1] = 0;
}

}  // namespace

OperandFormat operand_format(WeightType type, int32_t activation_bits, int32_t rows) {
    switch (type) {
        case WeightType::f32:
        case WeightType::f16:
            return OperandFormat::floats;
        case WeightType::bf16:
            return OperandFormat::bf16;
        case WeightType::q8:
        case WeightType::q4:
        case WeightType::q4m:
            break;
    }
    if (activation_bits == 8 && (kDotU8TakesBytes || type != WeightType::q8)) return OperandFormat::one_digit;
    return kHasDotS16 && rows > kMaxTileRows ? OperandFormat::wide : OperandFormat::two_digits;
}

OperandWriter::OperandWriter(const MatmulOperand& operand, int32_t rows, int32_t k)
    : data_(operand.data),
      type_(operand.type),
      max_code_(operand.activation_bits == 8 ? kMaxByteCode : kMaxCode),
      k_(k),
      format_(operand.data ? operand_format(operand.type, operand.activation_bits, rows)
                           : OperandFormat::floats) {}

template <class Block>
void OperandWriter::quantise(int64_t row, int32_t begin, int32_t end, const float* x) const {
    Block* const to = static_cast<Block*>(data_) + row * blocks_of_row<Block>(k_);
    for (int32_t i = begin; i < end; i += kQuantBlock, x += kQuantBlock)
        store_codes(to, i / kQuantBlock, k_ / kQuantBlock, type_, quantise_block(x, max_code_));
}

void OperandWriter::round_bf16(int64_t row, int32_t begin, int32_t end, const float* x) const {
    uint16_t* const to = static_cast<uint16_t*>(data_) + row * bf16_operand_stride(k_) + begin;
    const int32_t n = end - begin;
    int32_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store_bf16(to + i, load(x + i));
    for (; i < n; ++i) to[i] = to_bf16(x[i]);
    if (end == k_ && k_ % 2 == 1) to[n] = 0;
}

void OperandWriter::write(int64_t row, int32_t begin, int32_t end, const float* x) const {
    switch (format_) {
        case OperandFormat::floats:
            return;
        case OperandFormat::bf16:
            return round_bf16(row, begin, end, x);
        case OperandFormat::one_digit:
            return quantise<BytePair>(row, begin, end, x);
        case OperandFormat::two_digits:
            return quantise<QuantisedBlock>(row, begin, end, x);
        case OperandFormat::wide:
            return quantise<WideBlock>(row, begin, end, x);
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
