// What a matmul multiplies with its weights: activations in the number format that these ask for, written by
// matmul_prepare or by the op that made them.
#pragma once

#include "cpu/simd.h"
#include "ops.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// floats: as they are, nothing is written. bf16: rows padded with zero to an even number of weights. Codes of
// quantised weights: of one digit in BytePairs, of two in QuantisedBlocks, or in WideBlocks for weights that
// are unpacked a chunk at a time.
enum class OperandFormat { floats, bf16, one_digit, two_digits, wide };

// Of a matmul of that many rows.
OperandFormat operand_format(WeightType type, int32_t activation_bits, int32_t rows);

// Writes rows of k activations into an operand, in any order and from any thread.
class OperandWriter {
  public:
    OperandWriter(const MatmulOperand& operand, int32_t rows, int32_t k);

    // Whether anything is to be written.
    explicit operator bool() const { return format_ != OperandFormat::floats; }

    // Columns [begin, end) of a row; x is of column `begin`. Multiples of kQuantBlock, or end is k.
    void write(int64_t row, int32_t begin, int32_t end, const float* x) const;

  private:
    template <class Block>
    void quantise(int64_t row, int32_t begin, int32_t end, const float* x) const;
    void round_bf16(int64_t row, int32_t begin, int32_t end, const float* x) const;

    void* data_;
    WeightType type_;
    float step_;  // the scale of a block whose largest magnitude is 1
    int32_t k_;
    OperandFormat format_;
};

// This thread's copy of an operand: the only one where there are more than copy_rows rows.
inline void* own_copy(void* data, WeightType type, int32_t copy_rows, int32_t rows, int32_t k,
                      const Worker& worker) {
    if (rows > copy_rows) return data;
    return static_cast<uint8_t*>(data) + worker.thread_idx * operand_copy_bytes(type, copy_rows, k);
}

// A block of 32 quantised activations; an operand is [rows, k / 32] of them.
//
// A code is the nearest even of x / scale, a scale the smallest float of 1 + kScaleBits bits that keeps the
// block's codes in range: 2^-100 at least, and NaN for a block with a NaN or a magnitude of 2^100.
//
// Codes have 14 bits: two digits of base 128, code = 128 * high + low, each
// multiplied by 8-bit dot products of its own. One digit would do for a layer, not for a model: the
// activations of language models have few channels that are far larger than their neighbours, which 8 bits
// then leave a handful of codes, and every rounding that falls the other way (another order of an
// all-reduce) moves the logits. SmolLM2's logits, largest relative error over positions: 0.2 with one digit,
// 0.013 with two, nearly all of it from keys and values in bf16. Digits of 7 bits instead of 8 lose nothing
// that shows, and keep a pair of products (2 * 255 * 64) within 16 bits, which AVX2 multiplies exactly then.
//
// Codes of 8 bits may be asked for all the same (activation_bits), one digit where the ISA multiplies such:
// the precision that other engines offer, in little more than half the time where products decide.
constexpr int32_t kDigitBits = 7;
constexpr int32_t kMaxCode = 8127;  // 128 * 63 + 63
constexpr int32_t kMaxByteCode = 127;

constexpr int kVectorBytes = 64;
constexpr int kStoredBits = 23;  // of a float's mantissa
constexpr int kScaleBits = 2;    // of those, a scale's: with codes of 8 bits noise grows by 11 %
constexpr int kMantissas = 1 << kScaleBits;

// Both digits of codes up to kMaxCode.
FASTSERVE_INLINE void store_digits(VecI codes, int8_t* high, int8_t* low) {
    const VecI upper = shift_right_signed<kDigitBits>(add(codes, splat(int32_t{1 << (kDigitBits - 1)})));
    store_low8(high, upper);
    store_low8(low, sub(codes, shift_left<kDigitBits>(upper)));
}

struct QuantisedBlock {
    int8_t high[kQuantBlock];  // -63..63
    int8_t low[kQuantBlock];   // -64..63
    float scale;
    int32_t base;  // q8, q4: kOffsetU8 - 128 or -8 times the sum of the codes, a term of the integer dot
                   //   product; q4m: the bits of the float scale * sum, which multiplies the minimum
};

// The same codes for many rows, whole: products with codes of 16 bits take as many instructions as those of
// two digits with bytes, and no more behind them. The integer sums, and so all bits, are those of the digits.
struct WideBlock {
    int16_t codes[kQuantBlock];  // of each four the first, the third, the second, the fourth: as bytes unpack
    float scale;
    int32_t base;
};
static_assert(sizeof(WideBlock) == sizeof(QuantisedBlock));

// Codes of one digit, -127..127, of two blocks; of an odd number's last block the second half holds anything
// but its sum, 0.
//
// A scale is a power of two, by which nothing has to be multiplied, times one of few mantissas, for which the
// weights' scales can be multiplied beforehand. An *origin* stands for it: the bits of 1.5 * 2^23 times the
// power, a float in whose last place the power counts one, plus the mantissa's index times kVectorBytes. Sums
// of products begin at an origin, in their bits; the float that they end as lies above it by power * sum.
struct BytePair {
    int8_t codes[2][kQuantBlock];
    int32_t origin[2];
    int32_t start[2];  // origin + what q8: kOffsetU8 - 128, q4 and q4m: -8 times the sum of the codes
    uint16_t sum[2];   // q4m: scale * sum of the codes, a bfloat16, which multiplies the centre
};

template <class Block>
constexpr int64_t kCodesOf = kQuantBlock;
template <>
constexpr int64_t kCodesOf<BytePair> = 2 * kQuantBlock;

// Blocks of that kind in a row of k codes.
template <class Block>
constexpr int64_t blocks_of_row(int64_t k) {
    return (k + kCodesOf<Block> - 1) / kCodesOf<Block>;
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
