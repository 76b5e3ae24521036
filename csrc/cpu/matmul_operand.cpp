// Activations in the number format that the weights ask for.
#include "cpu/matmul_operand.h"

#include <algorithm>
#include <type_traits>

#include "cpu/matmul_tiles.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

constexpr int32_t kOneExponent = 1 << kStoredBits;  // a float's bits grow by this when it doubles
constexpr int32_t kExponents = 255 * kOneExponent;

struct Codes {
    VecI first, second;
    float scale;
    int32_t sum;

    FASTSERVE_INLINE float scaled_sum() const { return scale * static_cast<float>(sum); }
};

// The smallest of a scale's values that is no less than largest * step; largest: the bits of a magnitude.
FASTSERVE_INLINE float scale_of(int32_t largest, float step) {
    constexpr int32_t kDropped = (1 << (kStoredBits - kScaleBits)) - 1;
    constexpr int32_t kSmallest = (127 - 100) * kOneExponent, kTooLarge = (127 + 100) * kOneExponent;
    if (largest >= kTooLarge) return __builtin_nanf("");
    const auto least = __builtin_bit_cast(int32_t, __builtin_bit_cast(float, largest) * step);
    return __builtin_bit_cast(float, std::max((least + kDropped) & ~kDropped, kSmallest));
}

// Codes of magnitudes up to 1 / step.
FASTSERVE_INLINE Codes quantise_block(const float* x, float step) {
    // As integers, magnitudes are ordered like floats, and NaN is above all.
    const VecI magnitudes = max(as_int(abs(load(x))), as_int(abs(load(x + kLanes))));
    Codes codes;
    codes.scale = scale_of(reduce_max(magnitudes), step);
    const Vec factor = splat(1 / codes.scale);
    codes.first = to_int(mul(load(x), factor));
    codes.second = to_int(mul(load(x + kLanes), factor));
    codes.sum = reduce_add(add(codes.first, codes.second));
    return codes;
}

FASTSERVE_INLINE int32_t origin_of(float scale) {
    constexpr int32_t kHalf = kOneExponent / 2, kLast = kMantissas - 1;
    const auto bits = __builtin_bit_cast(int32_t, scale);
    if (bits >= kExponents) return kExponents + kHalf;  // a NaN, and so is what begins at it
    const int32_t mantissa = bits >> (kStoredBits - kScaleBits) & kLast;
    return (bits & kExponents) + kStoredBits * kOneExponent + kHalf + mantissa * kVectorBytes;
}

// What weights of a type ask of activations.
struct Wanted {
    bool has_minimum;
    int32_t per_code;  // what the integer products lack for each code

    // offset: what they take from the codes of q8 weights by themselves.
    FASTSERVE_INLINE Wanted(WeightType type, int32_t offset)
        : has_minimum(type == WeightType::q4m), per_code(type == WeightType::q8 ? offset - 128 : -8) {}

    FASTSERVE_INLINE int32_t base(const Codes& codes) const {
        return has_minimum ? __builtin_bit_cast(int32_t, codes.scaled_sum()) : codes.sum * per_code;
    }
};

// Block `block` of a row.
FASTSERVE_INLINE void store_codes(QuantisedBlock* row, uint32_t block, const Wanted& wanted,
                                  const Codes& codes) {
    QuantisedBlock& to = row[block];
    store_digits(codes.first, to.high, to.low);
    store_digits(codes.second, to.high + kLanes, to.low + kLanes);
    to.scale = codes.scale;
    to.base = wanted.base(codes);
}

FASTSERVE_INLINE void store_codes(WideBlock* row, uint32_t block, const Wanted& wanted, const Codes& codes) {
    WideBlock& to = row[block];
    uint64_t fours[kQuantBlock / 4];
    store_low16(reinterpret_cast<uint16_t*>(fours), codes.first);
    store_low16(reinterpret_cast<uint16_t*>(fours + kLanes / 4), codes.second);
    for (uint64_t& four : fours)
        four = (four & 0xffff00000000ffff) | (four & 0xffff0000) << 16 | (four >> 16 & 0xffff0000);
    __builtin_memcpy(to.codes, fours, sizeof fours);
    to.scale = codes.scale;
    to.base = wanted.base(codes);
}

FASTSERVE_INLINE void store_codes(BytePair* row, uint32_t block, const Wanted& wanted, const Codes& codes) {
    BytePair& to = row[block / 2];
    const uint32_t half = block % 2;
    store_low8(to.codes[half], codes.first);
    store_low8(to.codes[half] + kLanes, codes.second);
    const int32_t origin = origin_of(codes.scale);
    to.origin[half] = origin;
    to.start[half] = origin + codes.sum * wanted.per_code;
    if (wanted.has_minimum) to.sum[half] = to_bf16(codes.scaled_sum());
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
      step_(1 / static_cast<float>(operand.activation_bits == 8 ? kMaxByteCode : kMaxCode)),
      k_(k),
      format_(operand.data ? operand_format(operand.type, operand.activation_bits, rows)
                           : OperandFormat::floats) {}

template <class Block>
void OperandWriter::quantise(int64_t row, int32_t begin, int32_t end, const float* x) const {
    Block* const to = static_cast<Block*>(data_) + row * blocks_of_row<Block>(k_);
    const Wanted wanted(type_, std::is_same_v<Block, WideBlock> ? 0 : kOffsetU8);
    const float step = step_;  // stores of codes could change a member, for all that the compiler knows
    const auto first = static_cast<uint32_t>(begin) / kQuantBlock,
               last = static_cast<uint32_t>(end) / kQuantBlock;
    for (uint32_t block = first; block < last; ++block, x += kQuantBlock)
        store_codes(to, block, wanted, quantise_block(x, step));
    if constexpr (std::is_same_v<Block, BytePair>)
        if (end == k_ && last % 2 == 1) to[last / 2].sum[1] = 0;
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
