// Tiles of q8, q4 and q4m weights with activations in codes of two digits.
//
// Per block, row and panel: 8 dot products (32 x 16 products) for each digit and, in floats, int -> float,
// scale of weights x scale of activations, fma; q4m one fma more for the minimum. The digits go one after the
// other, over the same weights, which come from the packed weight: the integer sum of the high ones is
// shifted and taken up by the low ones, so a tile needs no more registers than with one digit. Where that is
// faster, many rows share codes unpacked to L1, as s16: 16 dot products with the activations' whole codes,
// and the same behind them.
#include "cpu/matmul_quantised.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

constexpr int kPairs = 16;  // of 2 k in a block
constexpr int kHighOffset = offsetof(QuantisedBlock, high), kLowOffset = offsetof(QuantisedBlock, low);
constexpr int kScaleOffset = offsetof(QuantisedBlock, scale), kBaseOffset = offsetof(QuantisedBlock, base);
static_assert(sizeof(QuantisedBlock) == 2 * kQuantBlock + 8);  // matmul_scratch_bytes
static_assert(offsetof(WideBlock, codes) == 0 && offsetof(WideBlock, scale) == kScaleOffset &&
              offsetof(WideBlock, base) == kBaseOffset);
constexpr int kMaxChunkBlocks = 16;  // choose_matmul's chunk of 512, where weights are unpacked

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

// acc[r] += sums[r] * (scale of the weights * scale of row r's activations).
template <int R, class Scales>
FASTSERVE_INLINE void add_links(Vec (&acc)[R][1], const VecI (&sums)[R], Vec scale, Scales scales) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const Vec scale_product = mul(scale, as_float(broadcast4(scales(r))));
        acc[r][0] = fma(to_float(sums[r]), scale_product, acc[r][0]);
    }
}

template <class Layout, bool has_minimum, int R, class At>
FASTSERVE_INLINE void add_links_and_minima(Vec (&acc)[R][1], const VecI (&sums)[R], const uint8_t* w, At at) {
    add_links(acc, sums, Layout::scale(w),
              [=](int r) __attribute__((always_inline)) { return at(r, kScaleOffset); });
    if constexpr (has_minimum) {
        const Vec minimum = Layout::minimum(w);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
            acc[r][0] = fma(minimum, as_float(broadcast4(at(r, kBaseOffset))), acc[r][0]);
    }
}

template <WeightType type>
struct FewRows : Tiles<type> {
    using Layout = Packed<type>;
    using Products = DigitProducts<type>;
    using Tiles<type>::Tiles;
    static constexpr bool kNarrow = Layout::kNarrow;

    template <int P>
    FASTSERVE_INLINE void begin(int panel, int k_begin, int k_end) {
        this->begin_chunk(panel, k_begin, k_end);
    }

    // block w . one row's codes, both digits in one pass: two chains a digit hide the latency that other
    // tiles hide by having many sums.
    FASTSERVE_INLINE static VecI row_sum(const uint8_t* w, const uint8_t* x) {
        const uint8_t* const digits[2] = {x + kHighOffset, x + kLowOffset};
        decltype(begin_digit<kNarrow>(zero_i())) running[2][2];
#pragma GCC unroll 8
        for (auto& chains : running) chains[0] = chains[1] = begin_digit<kNarrow>(zero_i());
#pragma GCC unroll 8
        for (int g = 0; g < kGroups / 2; ++g) {
            VecI low, high;
            Products::operands(w, g, low, high);
#pragma GCC unroll 8
            for (int d = 0; d < 2; ++d) {
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

    template <int R, int P>
    [[gnu::noinline]] void tile(int row) const {
        Vec acc[R][1];
        float* const out = this->chunk_y + row * this->ldy;
        load_chain(acc, out, this->ldy, this->num_columns, this->first_block == 0);
        const uint8_t* w = this->chunk_w;
        RowsOfBlocks<QuantisedBlock> rows(this->x, row, this->weight.k, this->first_block);
        for (int b = 0; b < this->num_blocks; ++b) {
            const auto at = [=](int r, int64_t offset)
                                __attribute__((always_inline)) { return rows.at(r, offset); };
            const auto base = [=](int r) __attribute__((always_inline)) {
                return Layout::kHasMinimum ? zero_i() : broadcast4(at(r, kBaseOffset));
            };
            this->template prefetch_ahead<R>(w);
            VecI sums[R];
            if constexpr (R == 1) {
                sums[0] = add(row_sum(w, at(0, 0)), base(0));
            } else {
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) sums[r] = zero_i();
                Products::add(sums, w,
                              [=](int r) __attribute__((always_inline)) { return at(r, kHighOffset); });
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) sums[r] = add(shift_left<kDigitBits>(sums[r]), base(r));
                w = reread(w);
                Products::add(sums, w,
                              [=](int r) __attribute__((always_inline)) { return at(r, kLowOffset); });
            }
            add_links_and_minima<Layout, Layout::kHasMinimum>(acc, sums, w, at);
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
        RowsOfBlocks<WideBlock> rows(this->x, row, this->weight.k, this->first_block);
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
            add_links_and_minima<Layout, Packed<type>::kHasMinimum>(acc, sums, w, at);
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
        if (operand_format(type, args.activation_bits, args.rows) == OperandFormat::wide) {
            alignas(kVectorBytes) uint8_t buffer[kMaxChunkBlocks * Unpacked<type>::kBlockBytes];
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
    if (operand_format(args.w.type, args.activation_bits, args.rows) == OperandFormat::one_digit)
        matmul_tile_one_digit(args, part, y, ldy);
    else if (args.w.type == WeightType::q8)
        run<WeightType::q8>(args, part, y, ldy);
    else if (args.w.type == WeightType::q4)
        run<WeightType::q4>(args, part, y, ldy);
    else
        run<WeightType::q4m>(args, part, y, ldy);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
