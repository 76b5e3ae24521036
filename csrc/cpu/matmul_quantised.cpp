// Tiles of q8, q4 and q4m weights: integer dot products of 8-bit codes, one float link per block of 32.
//
// Per block, row and panel: 8 dot products (32 x 16 products) for each digit of the activations and, in
// floats, int
// -> float, scale of weights x scale of activations, fma; q4m one fma more for the minimum. The digits go one
// after the other, over the same weights, which come from the packed weight: the integer sum of the high ones
// is shifted and taken up by the low ones, so a tile needs no more registers than with one digit. Where that
// is faster, many rows share codes unpacked to L1, as s16: 16 dot products with the activations' whole codes,
// and the same behind them.
#include <cstddef>

#include "cpu/matmul.h"
#include "cpu/matmul_tiles.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

constexpr int kVectorBytes = 64;
constexpr int kGroups = 8;  // of 4 k in a block
constexpr int kPairs = 16;  // of 2 k
constexpr int kHighOffset = offsetof(QuantisedBlock, high), kLowOffset = offsetof(QuantisedBlock, low);
constexpr int kScaleOffset = offsetof(QuantisedBlock, scale), kBaseOffset = offsetof(QuantisedBlock, base);
static_assert(sizeof(QuantisedBlock) == 2 * kQuantBlock + 8);  // matmul_scratch_bytes
static_assert(offsetof(WideBlock, codes) == 0 && offsetof(WideBlock, scale) == kScaleOffset &&
              offsetof(WideBlock, base) == kBaseOffset);
constexpr int kMaxChunkBlocks = 16;  // choose_matmul's chunk of 512

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

// The same with float scales and minima, and pairs of s16: vector 2 g + i holds of each lane's four codes of
// group g the pair (i, i + 2).
template <WeightType type>
struct Unpacked {
    static constexpr int kHeader = 2 * kVectorBytes;
    static constexpr int kBlockBytes = kHeader + kPairs * kVectorBytes;

    FASTSERVE_INLINE static Vec scale(const uint8_t* block) {
        return load(reinterpret_cast<const float*>(block));
    }
    FASTSERVE_INLINE static Vec minimum(const uint8_t* block) {
        return load(reinterpret_cast<const float*>(block) + kPanel);
    }
};

FASTSERVE_INLINE void unpack_group(VecI bytes, uint8_t* to) {
    const VecI mask = splat(int32_t{0x00ff00ff});
    store(to, bit_and(bytes, mask));
    store(to + kVectorBytes, bit_and(shift_right<8>(bytes), mask));
}

template <WeightType type>
void unpack_panel(const uint8_t* from, int num_blocks, uint8_t* to) {
    for (int b = 0; b < num_blocks; ++b) {
        store(reinterpret_cast<float*>(to), Packed<type>::scale(from));
        if constexpr (Packed<type>::kHasMinimum)
            store(reinterpret_cast<float*>(to) + kPanel, Packed<type>::minimum(from));
        for (int g = 0; g < kGroups / 2; ++g) {
            VecI low, high;
            Packed<type>::pair(from, g, low, high);
            uint8_t* const groups = to + Unpacked<type>::kHeader;
            unpack_group(low, groups + 2 * g * kVectorBytes);
            unpack_group(high, groups + 2 * (g + kGroups / 2) * kVectorBytes);
        }
        from += Packed<type>::kBlockBytes;
        to += Unpacked<type>::kBlockBytes;
    }
}

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

// What a block of a weight and those of x are multiplied with, apart from the integer sums.
template <class Layout, bool has_minimum, int R, class At>
FASTSERVE_INLINE void add_links(Vec (&acc)[R][1], const VecI (&sums)[R], const uint8_t* w, At at) {
    const Vec scale = Layout::scale(w);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const Vec scale_product = mul(scale, as_float(broadcast4(at(r, kScaleOffset))));
        acc[r][0] = fma(to_float(sums[r]), scale_product, acc[r][0]);
    }
    if constexpr (has_minimum) {
        const Vec minimum = Layout::minimum(w);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
            acc[r][0] = fma(minimum, as_float(broadcast4(at(r, kBaseOffset))), acc[r][0]);
    }
}

// The rows of a tile among blocks of x. Three pointers and a stride reach eight rows with what an x86 address
// can express.
struct RowsOfBlocks {
    const uint8_t* thirds[3];
    int64_t ldx;

    FASTSERVE_INLINE RowsOfBlocks(const void* x, int row, int64_t blocks_per_row, int first_block)
        : ldx(blocks_per_row * static_cast<int64_t>(sizeof(QuantisedBlock))) {
        for (int i = 0; i < 3; ++i)
            thirds[i] = static_cast<const uint8_t*>(x) + (row + 3 * i) * ldx +
                        first_block * int64_t{sizeof(QuantisedBlock)};
    }
    FASTSERVE_INLINE const uint8_t* at(int r, int64_t offset) const {
        return thirds[r / 3] + r % 3 * ldx + offset;
    }
    FASTSERVE_INLINE void advance() {
        for (const uint8_t*& third : thirds) third += sizeof(QuantisedBlock);
    }
};

// What both kinds of tiles know: the product, and the current chunk of the current panels.
template <WeightType type>
struct Tiles {
    static constexpr int kMaxPanels = 1, kMaxTile = 8, kMaxRows = kNumRegisters < 32 ? kMaxTileRows : 8;

    const void* x;  // QuantisedBlocks, or WideBlocks
    int64_t blocks_per_row;
    PackedWeight weight;
    float* y;
    int64_t ldy;
    const uint8_t* chunk_w;
    int64_t panel_bytes;
    float* chunk_y;
    int num_columns, first_block, num_blocks;

    Tiles(const MatmulArgs& args, float* y, int64_t ldy)
        : x(args.scratch), blocks_per_row(args.w.k / kQuantBlock), weight(args.w), y(y), ldy(ldy) {}

    FASTSERVE_INLINE void begin_chunk(int panel, int k_begin, int k_end) {
        first_block = k_begin / kQuantBlock;
        num_blocks = (k_end - k_begin) / kQuantBlock;
        chunk_y = y + int64_t{panel} * kPanel;
        num_columns = weight.n - panel * kPanel;
        panel_bytes = weight.panel_bytes;
        chunk_w = weight.data + panel * panel_bytes + int64_t{first_block} * Packed<type>::kBlockBytes;
    }
};

template <WeightType type, int kDigits>
struct FewRows : Tiles<type> {
    using Layout = Packed<type>;
    using Tiles<type>::Tiles;
    static constexpr bool kNarrow = Layout::kNarrow;
    static constexpr int kAheadBlocks = kAheadBytes / Layout::kBlockBytes;

    template <int P>
    FASTSERVE_INLINE void begin(int panel, int k_begin, int k_end) {
        this->begin_chunk(panel, k_begin, k_end);
    }

    FASTSERVE_INLINE static void operands(const uint8_t* w, int g, VecI& low, VecI& high) {
        Layout::pair(w, g, low, high);
        if constexpr (!kNarrow) {
            low = operand_u8(low);
            high = operand_u8(high);
        }
    }

    // sums[r] += block w . the 32 digits at digits(r).
    template <int R, class Digits>
    FASTSERVE_INLINE static void add_digit(VecI (&sums)[R], const uint8_t* w, Digits digits) {
        constexpr int kChains =
            8 * R <= kNumRegisters ? 2 : 1;  // a row; few chains would wait for each product
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
            if constexpr (kChains == 2) sums[r] = add(sums[r], end_digit<kNarrow>(zero_i(), running[r][1]));
        }
    }

    // The same for one row and all its digits, in one pass: two chains a digit hide the latency that other
    // tiles hide by having many sums.
    FASTSERVE_INLINE static VecI row_sum(const uint8_t* w, const uint8_t* x) {
        const uint8_t* const digits[2] = {x + kHighOffset, x + kLowOffset};
        decltype(begin_digit<kNarrow>(zero_i())) running[kDigits][2];
#pragma GCC unroll 8
        for (auto& chains : running) chains[0] = chains[1] = begin_digit<kNarrow>(zero_i());
#pragma GCC unroll 8
        for (int g = 0; g < kGroups / 2; ++g) {
            VecI low, high;
            operands(w, g, low, high);
#pragma GCC unroll 8
            for (int d = 0; d < kDigits; ++d) {
                running[d][0] = dot<kNarrow>(running[d][0], low, broadcast4(digits[d] + 4 * g));
                running[d][1] = dot<kNarrow>(running[d][1], high, broadcast4(digits[d] + 4 * g + 16));
            }
        }
        VecI sum = zero_i();
#pragma GCC unroll 8
        for (const auto& chains : running)
            sum = add(shift_left<kDigitBits>(sum),
                      add(end_digit<kNarrow>(zero_i(), chains[0]), end_digit<kNarrow>(zero_i(), chains[1])));
        return sum;
    }

    template <int R>
    FASTSERVE_INLINE static void prefetch_ahead(const uint8_t* w) {
        if constexpr (kAheadBlocks > 0 && R >= kAheadRows)
#pragma GCC unroll 16
            for (int line = 0; line < Layout::kBlockBytes; line += kVectorBytes)
                prefetch(w + kAheadBlocks * Layout::kBlockBytes + line);
    }

    template <int R, int P>
    [[gnu::noinline]] void tile(int row) const {
        Vec acc[R][1];
        float* const out = this->chunk_y + row * this->ldy;
        load_chain(acc, out, this->ldy, this->num_columns, this->first_block == 0);
        const uint8_t* w = this->chunk_w;
        RowsOfBlocks rows(this->x, row, this->blocks_per_row, this->first_block);
        for (int b = 0; b < this->num_blocks; ++b) {
            const auto at = [=](int r, int64_t offset)
                                __attribute__((always_inline)) { return rows.at(r, offset); };
            const auto base = [=](int r) __attribute__((always_inline)) {
                return Layout::kHasMinimum ? zero_i() : broadcast4(at(r, kBaseOffset));
            };
            prefetch_ahead<R>(w);
            VecI sums[R];
            if constexpr (R == 1) {
                sums[0] = add(row_sum(w, at(0, 0)), base(0));
            } else {
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) sums[r] = kDigits == 1 ? base(r) : zero_i();
                add_digit(sums, w, [=](int r) __attribute__((always_inline)) { return at(r, kHighOffset); });
                if constexpr (kDigits == 2) {
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) sums[r] = add(shift_left<kDigitBits>(sums[r]), base(r));
                    w = reread(w);
                    add_digit(sums, w,
                              [=](int r) __attribute__((always_inline)) { return at(r, kLowOffset); });
                }
            }
            add_links<Layout, Layout::kHasMinimum>(acc, sums, w, at);
            rows.advance();
            w += Layout::kBlockBytes;
        }
        store_chain(acc, out, this->ldy, this->num_columns);
    }
};

template <WeightType type>
struct ManyRows : Tiles<type> {
    using Layout = Unpacked<type>;
    using Tiles<type>::Tiles;

    uint8_t* buffer;  // kMaxChunkBlocks blocks

    template <int P>
    FASTSERVE_INLINE void begin(int panel, int k_begin, int k_end) {
        this->begin_chunk(panel, k_begin, k_end);
        unpack_panel<type>(this->chunk_w, this->num_blocks, buffer);
    }

    template <int R, int P>
    [[gnu::noinline]] void tile(int row) const {
        Vec acc[R][1];
        float* const out = this->chunk_y + row * this->ldy;
        load_chain(acc, out, this->ldy, this->num_columns, this->first_block == 0);
        const uint8_t* w = buffer;
        RowsOfBlocks rows(this->x, row, this->blocks_per_row, this->first_block);
        for (int b = 0; b < this->num_blocks; ++b) {
            const auto at = [=](int r, int64_t offset)
                                __attribute__((always_inline)) { return rows.at(r, offset); };
            VecI sums[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                sums[r] = Packed<type>::kHasMinimum ? zero_i() : broadcast4(at(r, kBaseOffset));
#pragma GCC unroll 16
            for (int j = 0; j < kPairs; ++j) {
                const VecI codes = load(w + Layout::kHeader + j * kVectorBytes);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) sums[r] = dot_s16(sums[r], codes, broadcast4(at(r, 4 * j)));
            }
            add_links<Layout, Packed<type>::kHasMinimum>(acc, sums, w, at);
            rows.advance();
            w += Layout::kBlockBytes;
        }
        store_chain(acc, out, this->ldy, this->num_columns);
    }
};

template <WeightType type>
void run(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy) {
    const MatmulConfig config = choose_matmul(args.rows, type);
    const OperandFormat format = operand_format(type, args.activation_bits, args.rows);
    if constexpr (kHasDotS16) {
        if (format == OperandFormat::wide) {
            alignas(kVectorBytes) uint8_t buffer[kMaxChunkBlocks * Unpacked<type>::kBlockBytes];
            ManyRows<type> kind(args, y, ldy);
            kind.buffer = buffer;
            return walk_tiles(kind, args.w.k, part, config);
        }
    }
    if constexpr (kDotU8TakesBytes || type != WeightType::q8) {
        if (format == OperandFormat::one_digit) {
            FewRows<type, 1> kind(args, y, ldy);
            return walk_tiles(kind, args.w.k, part, config);
        }
    }
    FewRows<type, 2> kind(args, y, ldy);
    walk_tiles(kind, args.w.k, part, config);
}

}  // namespace

void matmul_tile_quantised(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy) {
    if (args.w.type == WeightType::q8)
        run<WeightType::q8>(args, part, y, ldy);
    else if (args.w.type == WeightType::q4)
        run<WeightType::q4>(args, part, y, ldy);
    else
        run<WeightType::q4m>(args, part, y, ldy);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
