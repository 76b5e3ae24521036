// Tiles of q8, q4 and q4m weights: integer dot products of 8-bit codes, one float link per block of 32.
//
// Per block, row and panel, few rows: 8 dot products (32 x 16 products) for each of the two digits of the
// activations and, in floats, int -> float, scale of weights x scale of activations, fma; q4m one fma more
// for the minimum. The digits go one after the other, over the same weights, which come from the packed
// weight: the integer sum of the high ones is shifted and taken up by the low ones, so a tile needs no more
// registers than with one digit. Many rows share codes unpacked to L1, as s16: 16 dot products with the
// activations' whole codes, and the same behind them.
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
        return begin_u4s7(sum);
    else
        return sum;
}
template <bool narrow, class Sum>
FASTSERVE_INLINE Sum dot(Sum sum, VecI u, VecI s) {
    if constexpr (narrow)
        return dot_u4s7(sum, u, s);
    else
        return dot_u8s7(sum, u, s);
}
template <bool narrow, class Sum>
FASTSERVE_INLINE VecI end_digit(VecI sum, Sum digit) {
    if constexpr (narrow)
        return end_u4s7(sum, digit);
    else
        return digit;
}

// What the blocks of a weight and of x are multiplied with, apart from the integer sums.
template <class Layout, bool has_minimum, int R, int P, class At>
FASTSERVE_INLINE void add_links(Vec (&acc)[R][P], const VecI (&sums)[R][P], const uint8_t* w,
                                int64_t panel_bytes, At at) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
        const Vec scale = Layout::scale(w + p * panel_bytes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Vec scale_product = mul(scale, as_float(broadcast4(at(r, kScaleOffset))));
            acc[r][p] = fma(to_float(sums[r][p]), scale_product, acc[r][p]);
        }
        if constexpr (has_minimum) {
            const Vec minimum = Layout::minimum(w + p * panel_bytes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                acc[r][p] = fma(minimum, as_float(broadcast4(at(r, kBaseOffset))), acc[r][p]);
        }
    }
}

// The rows of a tile among blocks of x. Two pointers and a stride reach six rows with what an x86 address can
// express.
struct RowsOfBlocks {
    const uint8_t* top;
    const uint8_t* bottom;
    int64_t ldx;

    FASTSERVE_INLINE RowsOfBlocks(const void* x, int row, int64_t blocks_per_row, int first_block)
        : ldx(blocks_per_row * static_cast<int64_t>(sizeof(QuantisedBlock))) {
        top = static_cast<const uint8_t*>(x) + row * ldx + first_block * int64_t{sizeof(QuantisedBlock)};
        bottom = top + 3 * ldx;
    }
    FASTSERVE_INLINE const uint8_t* at(int r, int64_t offset) const {
        return (r < 3 ? top + r * ldx : bottom + (r - 3) * ldx) + offset;
    }
    FASTSERVE_INLINE void advance() {
        top += sizeof(QuantisedBlock);
        bottom += sizeof(QuantisedBlock);
    }
};

// What both kinds of tiles know: the product, and the current chunk of the current panels.
template <WeightType type>
struct Tiles {
    static constexpr int kMaxTile = 12;

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

template <WeightType type>
struct FewRows : Tiles<type> {
    using Layout = Packed<type>;
    using Tiles<type>::Tiles;
    static constexpr int kMaxPanels = 1;
    static constexpr int kAheadBlocks = kAheadBytes / Layout::kBlockBytes;

    template <int P>
    FASTSERVE_INLINE void begin(int panel, int k_begin, int k_end) {
        this->begin_chunk(panel, k_begin, k_end);
    }

    // sums[r][p] += block w of panel p . the 32 digits at digits(r).
    template <int R, int P, class Digits>
    FASTSERVE_INLINE void add_digit(VecI (&sums)[R][P], const uint8_t* w, Digits digits) const {
        constexpr bool kNarrow = Layout::kNarrow;
        decltype(begin_digit<kNarrow>(zero_i())) running[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) running[r][p] = begin_digit<kNarrow>(sums[r][p]);
#pragma GCC unroll 8
        for (int g = 0; g < kGroups / 2; ++g)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) {
                VecI low, high;
                Layout::pair(w + p * this->panel_bytes, g, low, high);
                if constexpr (!kNarrow) {
                    low = operand_u8(low);
                    high = operand_u8(high);
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
                    running[r][p] = dot<kNarrow>(running[r][p], low, broadcast4(digits(r) + 4 * g));
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
                    running[r][p] = dot<kNarrow>(running[r][p], high, broadcast4(digits(r) + 4 * g + 16));
            }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sums[r][p] = end_digit<kNarrow>(sums[r][p], running[r][p]);
    }

    // The block that is read kAheadBlocks from now: of these panels, or of those behind them.
    template <int P>
    FASTSERVE_INLINE void prefetch_ahead(const uint8_t* w, int b) const {
        if constexpr (kAheadBlocks > 0) {
            const int64_t skipped = b + kAheadBlocks < this->num_blocks ? 0 : (P - 1) * this->panel_bytes;
            const uint8_t* ahead = w + kAheadBlocks * Layout::kBlockBytes + skipped;
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
                for (int line = 0; line < Layout::kBlockBytes; line += kVectorBytes)
                    prefetch(ahead + p * this->panel_bytes + line);
        }
    }

    // The sum of one row and one panel, both digits in one pass: four chains hide the latency that other
    // tiles hide by having many sums.
    FASTSERVE_INLINE VecI lone_sum(const uint8_t* w, const uint8_t* block) const {
        constexpr bool kNarrow = Layout::kNarrow;
        const uint8_t* const digits[2] = {block + kHighOffset, block + kLowOffset};
        decltype(begin_digit<kNarrow>(zero_i())) running[2][2];
#pragma GCC unroll 8
        for (auto& chains : running) chains[0] = chains[1] = begin_digit<kNarrow>(zero_i());
#pragma GCC unroll 8
        for (int g = 0; g < kGroups / 2; ++g) {
            VecI low, high;
            Layout::pair(w, g, low, high);
            if constexpr (!kNarrow) {
                low = operand_u8(low);
                high = operand_u8(high);
            }
#pragma GCC unroll 8
            for (int d = 0; d < 2; ++d) {
                running[d][0] = dot<kNarrow>(running[d][0], low, broadcast4(digits[d] + 4 * g));
                running[d][1] = dot<kNarrow>(running[d][1], high, broadcast4(digits[d] + 4 * g + 16));
            }
        }
        VecI sums[2];
#pragma GCC unroll 8
        for (int d = 0; d < 2; ++d)
            sums[d] =
                add(end_digit<kNarrow>(zero_i(), running[d][0]), end_digit<kNarrow>(zero_i(), running[d][1]));
        VecI sum = add(shift_left<kDigitBits>(sums[0]), sums[1]);
        if constexpr (!Layout::kHasMinimum) sum = add(sum, broadcast4(block + kBaseOffset));
        return sum;
    }

    template <int R, int P>
    [[gnu::noinline]] void tile(int row) const {
        Vec acc[R][P];
        float* const out = this->chunk_y + row * this->ldy;
        load_chain(acc, out, this->ldy, this->num_columns, this->first_block == 0);
        const uint8_t* w = this->chunk_w;
        RowsOfBlocks rows(this->x, row, this->blocks_per_row, this->first_block);
        for (int b = 0; b < this->num_blocks; ++b) {
            const auto at = [=](int r, int64_t offset)
                                __attribute__((always_inline)) { return rows.at(r, offset); };
            prefetch_ahead<P>(w, b);
            VecI sums[R][P];
            if constexpr (R == 1 && P == 1) {
                sums[0][0] = lone_sum(w, at(0, 0));
                add_links<Layout, Layout::kHasMinimum>(acc, sums, w, this->panel_bytes, at);
                rows.advance();
                w += Layout::kBlockBytes;
                continue;
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) sums[r][p] = zero_i();
            add_digit(sums, w, [=](int r) __attribute__((always_inline)) { return at(r, kHighOffset); });
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) {
                    sums[r][p] = shift_left<kDigitBits>(sums[r][p]);
                    if constexpr (!Layout::kHasMinimum)
                        sums[r][p] = add(sums[r][p], broadcast4(at(r, kBaseOffset)));
                }
            w = reread(w);
            add_digit(sums, w, [=](int r) __attribute__((always_inline)) { return at(r, kLowOffset); });
            add_links<Layout, Layout::kHasMinimum>(acc, sums, w, this->panel_bytes, at);
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
    static constexpr int kMaxPanels = 1;
    static constexpr int64_t kPanelBytes = kMaxChunkBlocks * Layout::kBlockBytes;

    uint8_t* buffer;  // kPanelBytes

    template <int P>
    FASTSERVE_INLINE void begin(int panel, int k_begin, int k_end) {
        this->begin_chunk(panel, k_begin, k_end);
        for (int p = 0; p < P; ++p)
            unpack_panel<type>(this->chunk_w + p * this->panel_bytes, this->num_blocks,
                               buffer + p * kPanelBytes);
        this->chunk_w = buffer;
    }

    template <int R, int P>
    [[gnu::noinline]] void tile(int row) const {
        Vec acc[R][P];
        float* const out = this->chunk_y + row * this->ldy;
        load_chain(acc, out, this->ldy, this->num_columns, this->first_block == 0);
        const uint8_t* w = buffer;
        RowsOfBlocks rows(this->x, row, this->blocks_per_row, this->first_block);
        for (int b = 0; b < this->num_blocks; ++b) {
            const auto at = [=](int r, int64_t offset)
                                __attribute__((always_inline)) { return rows.at(r, offset); };
            VecI sums[R][P];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p)
                    sums[r][p] = Packed<type>::kHasMinimum ? zero_i() : broadcast4(at(r, kBaseOffset));
#pragma GCC unroll 16
            for (int j = 0; j < kPairs; ++j)
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) {
                    const VecI codes = load(w + p * kPanelBytes + Layout::kHeader + j * kVectorBytes);
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r)
                        sums[r][p] = dot_s16(sums[r][p], codes, broadcast4(at(r, 4 * j)));
                }
            add_links<Layout, Packed<type>::kHasMinimum>(acc, sums, w, kPanelBytes, at);
            rows.advance();
            w += Layout::kBlockBytes;
        }
        store_chain(acc, out, this->ldy, this->num_columns);
    }
};

template <WeightType type>
void run(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy) {
    const MatmulConfig config = choose_matmul(args.rows, type);
    if constexpr (kHasDotS16) {
        if (is_wide(args.rows, type)) {
            alignas(kVectorBytes) uint8_t buffer[ManyRows<type>::kPanelBytes];
            ManyRows<type> kind(args, y, ldy);
            kind.buffer = buffer;
            return walk_tiles(kind, args.w.k, part, config);
        }
    }
    FewRows<type> kind(args, y, ldy);
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
