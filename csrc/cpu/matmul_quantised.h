// What tiles of q8, q4 and q4m weights share, whatever the codes of the activations: how a packed block and
// rows of blocks are read, and the integer dot products of a block.
#pragma once

#include <cstddef>

#include "cpu/matmul.h"
#include "cpu/matmul_tiles.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

constexpr int kGroups = 8;  // of 4 k in a block

// How a panel's block is laid out, packed. pair(block, g) yields the codes of groups g and g + 4.
template <WeightType type>
struct Packed {
    static constexpr bool kHasMinimum = type == WeightType::q4m;
    static constexpr bool kNarrow = type != WeightType::q8;  // codes < 16
    static constexpr int kHeader = kPanel * (kHasMinimum ? 4 : 2);
    static constexpr int kBlockBytes = kHeader + (kNarrow ? 4 : 8) * kVectorBytes;

    FASTSERVE_INLINE static void pair(const uint8_t* block, int g, VecI& low, VecI& high) {
        const VecI bytes = load(block + kHeader + g * kVectorBytes);
        if constexpr (kNarrow) {
            low = low_nibbles(bytes);
            high = high_nibbles(bytes);
        } else {
            low = bytes;
            high = load(block + kHeader + (g + 4) * kVectorBytes);
        }
    }
    FASTSERVE_INLINE static Vec scale(const uint8_t* block) {
        return load_half(reinterpret_cast<const uint16_t*>(block));
    }
    FASTSERVE_INLINE static Vec minimum(const uint8_t* block) {
        return load_half(reinterpret_cast<const uint16_t*>(block) + kPanel);
    }
};

// The running sum of a block's products with one digit: on AVX2 those of 4-bit codes stay in 16 bits
// meanwhile.
template <bool narrow>
FASTSERVE_INLINE auto begin_digit(VecI sum) {
    if constexpr (narrow)
        return begin_u4(sum);
    else
        return sum;
}
template <bool narrow, class Sum>
FASTSERVE_INLINE Sum dot(Sum sum, VecI u, VecI s) {
    if constexpr (narrow)
        return dot_u4(sum, u, s);
    else
        return dot_u8(sum, u, s);
}
template <bool narrow, class Sum>
FASTSERVE_INLINE VecI end_digit(VecI sum, Sum digit) {
    if constexpr (narrow)
        return end_u4(sum, digit);
    else
        return digit;
}

// Integer products of a packed block with digits of rows.
template <WeightType type>
struct DigitProducts {
    using Layout = Packed<type>;
    static constexpr bool kNarrow = Layout::kNarrow;

    FASTSERVE_INLINE static void operands(const uint8_t* w, int g, VecI& low, VecI& high) {
        Layout::pair(w, g, low, high);
        if constexpr (!kNarrow) {
            low = operand_u8(low);
            high = operand_u8(high);
        }
    }

    // sums[r] += block w . the 32 digits at digits(r).
    template <int R, class Digits>
    FASTSERVE_INLINE static void add(VecI (&sums)[R], const uint8_t* w, Digits digits) {
        // Of a row. A product waits nine cycles for the one before it in its chain (Zen 4): with one chain
        // each, eight rows reach 96 % of what they do with two.
        constexpr int kChains = kNumRegisters >= 32 || 8 * R <= kNumRegisters ? 2 : 1;
        decltype(begin_digit<kNarrow>(zero_i())) running[R][kChains];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < kChains; ++c)
                running[r][c] = begin_digit<kNarrow>(c == 0 ? sums[r] : zero_i());
#pragma GCC unroll 8
        for (int g = 0; g < kGroups / 2; ++g) {
            VecI low, high;
            operands(w, g, low, high);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                running[r][0] = dot<kNarrow>(running[r][0], low, broadcast4(digits(r) + 4 * g));
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                running[r][kChains - 1] =
                    dot<kNarrow>(running[r][kChains - 1], high, broadcast4(digits(r) + 4 * g + 16));
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            sums[r] = end_digit<kNarrow>(sums[r], running[r][0]);
            if constexpr (kChains == 2)
                sums[r] = FASTSERVE_ISA_NAMESPACE::add(sums[r], end_digit<kNarrow>(zero_i(), running[r][1]));
        }
    }
};

// The rows of a tile among an operand's Blocks. Three pointers and a stride reach eight rows with what an x86
// address can express.
template <class Block>
struct RowsOfBlocks {
    const uint8_t* thirds[3];
    int64_t ldx;

    FASTSERVE_INLINE RowsOfBlocks(const void* x, int row, int64_t k, int first_block)
        : ldx(blocks_of_row<Block>(k) * static_cast<int64_t>(sizeof(Block))) {
        for (int i = 0; i < 3; ++i)
            thirds[i] = static_cast<const uint8_t*>(x) + (row + 3 * i) * ldx +
                        first_block * static_cast<int64_t>(sizeof(Block));
    }
    FASTSERVE_INLINE const uint8_t* at(int r, int64_t offset) const {
        return thirds[r / 3] + r % 3 * ldx + offset;
    }
    FASTSERVE_INLINE void advance() {
        for (const uint8_t*& third : thirds) third += sizeof(Block);
    }
};

// What all kinds of tiles know: the product, and the current chunk of the current panel.
template <WeightType type>
struct Tiles {
    static constexpr int kMaxPanels = 1, kMaxTile = 8, kMaxRows = kNumRegisters < 32 ? kMaxTileRows : 8;
    static constexpr int kAheadBlocks = kAheadBytes / Packed<type>::kBlockBytes;

    const void* x;  // blocks of the kind
    PackedWeight weight;
    float* y;
    int64_t ldy;
    const uint8_t* chunk_w;
    float* chunk_y;
    int num_columns, first_block, num_blocks;

    Tiles(const MatmulArgs& args, float* y, int64_t ldy) : x(args.scratch), weight(args.w), y(y), ldy(ldy) {}

    FASTSERVE_INLINE void begin_chunk(int panel, int k_begin, int k_end) {
        first_block = k_begin / kQuantBlock;
        num_blocks = (k_end - k_begin) / kQuantBlock;
        chunk_y = y + int64_t{panel} * kPanel;
        num_columns = weight.n - panel * kPanel;
        chunk_w = weight.data + panel * weight.panel_bytes + int64_t{first_block} * Packed<type>::kBlockBytes;
    }

    template <int R>
    FASTSERVE_INLINE static void prefetch_ahead(const uint8_t* w) {
        if constexpr (kAheadBlocks > 0 && R >= kAheadRows)
#pragma GCC unroll 16
            for (int line = 0; line < Packed<type>::kBlockBytes; line += kVectorBytes)
                prefetch(w + kAheadBlocks * Packed<type>::kBlockBytes + line);
    }
};

// matmul_tile_quantised for activations in codes of one digit.
void matmul_tile_one_digit(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy);

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
