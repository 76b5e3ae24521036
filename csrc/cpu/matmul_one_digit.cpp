// Tiles of q8, q4 and q4m weights with activations in codes of 8 bits.
//
// Dot products decide here, and each float operation behind them takes the place of one. q4m's minima are
// therefore multiplied two blocks at a time, as pairs of bfloat16: scale * code + minimum is
// scale * (code - 8) + *centre*, and a centre, about 0, loses by the rounding far less than the codes of the
// activations do. Many rows share a chunk's centres, made once.
#include "cpu/matmul_quantised.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

static_assert(sizeof(BytePair) == 2 * kQuantBlock + 20);  // matmul_scratch_bytes
constexpr int kMaxPairs = kMaxChunk / kQuantBlock / 2;

// Of blocks w and the one behind it; of the last block of an odd number, with 0.
template <WeightType type>
FASTSERVE_INLINE VecI centres_of(const uint8_t* w, bool has_second) {
    using Layout = Packed<type>;
    const auto centre = [](const uint8_t* block) __attribute__((always_inline)) {
        return fma(Layout::scale(block), splat(8.0f), Layout::minimum(block));
    };
    return to_bf16_pairs(centre(w), has_second ? centre(w + Layout::kBlockBytes) : zero());
}

template <WeightType type>
struct OneDigit : Tiles<type> {
    using Layout = Packed<type>;
    using Tiles<type>::Tiles;

    uint8_t* centres = nullptr;  // of a chunk; null: each tile makes its own

    template <int P>
    FASTSERVE_INLINE void begin(int panel, int k_begin, int k_end) {
        this->begin_chunk(panel, k_begin, k_end);
        if constexpr (Layout::kHasMinimum) {
            if (!centres) return;
            for (int b = 0; b < this->num_blocks; b += 2)
                store(centres + b / 2 * kVectorBytes,
                      centres_of<type>(this->chunk_w + b * Layout::kBlockBytes, b + 1 < this->num_blocks));
        }
    }

    // acc += block w . the codes of one half of a pair of blocks.
    template <int kHalf, int R>
    FASTSERVE_INLINE static void add_block(Vec (&acc)[R][1], const uint8_t* w,
                                           const RowsOfBlocks<BytePair>& rows) {
        Tiles<type>::template prefetch_ahead<R>(w);
        VecI sums[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
            sums[r] = broadcast4(rows.at(r, offsetof(BytePair, base) + kHalf * sizeof(int32_t)));
        DigitProducts<type>::add(
            sums, w, [&](int r) __attribute__((always_inline)) { return rows.at(r, kHalf * kQuantBlock); });
        add_links(acc, sums, Layout::scale(w), [&](int r) __attribute__((always_inline)) {
            return rows.at(r, offsetof(BytePair, scale) + kHalf * sizeof(float));
        });
    }

    template <int R>
    FASTSERVE_INLINE void add_minima(Vec (&acc)[R][1], const uint8_t* w, int b,
                                     const RowsOfBlocks<BytePair>& rows) const {
        if constexpr (Layout::kHasMinimum) {
            const VecI pair = centres ? load(centres + b / 2 * kVectorBytes)
                                      : centres_of<type>(w, b + 1 < this->num_blocks);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                acc[r][0] = dot_bf16(acc[r][0], pair, broadcast4(rows.at(r, offsetof(BytePair, sum))));
        }
    }

    template <int R, int P>
    [[gnu::noinline]] void tile(int row) const {
        Vec acc[R][1];
        float* const out = this->chunk_y + row * this->ldy;
        load_chain(acc, out, this->ldy, this->num_columns, this->first_block == 0);
        const uint8_t* w = this->chunk_w;
        RowsOfBlocks<BytePair> rows(this->x, row, this->weight.k, this->first_block / 2);
        int b = 0;
        for (; b + 2 <= this->num_blocks; b += 2) {
            add_block<0>(acc, w, rows);
            add_block<1>(acc, w + Layout::kBlockBytes, rows);
            add_minima(acc, w, b, rows);
            rows.advance();
            w += 2 * Layout::kBlockBytes;
        }
        if (b < this->num_blocks) {
            add_block<0>(acc, w, rows);
            add_minima(acc, w, b, rows);
        }
        store_chain(acc, out, this->ldy, this->num_columns);
    }
};

template <WeightType type>
void run(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy) {
    const MatmulConfig config = choose_matmul(args.rows, type);
    alignas(kVectorBytes) uint8_t centres[kMaxPairs * kVectorBytes];
    OneDigit<type> kind(args, y, ldy);
    if (config.chunk > 0) kind.centres = centres;
    walk_tiles(kind, args.w.k, part, config);
}

}  // namespace

void matmul_tile_one_digit(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy) {
    switch (args.w.type) {
        case WeightType::q4:
            return run<WeightType::q4>(args, part, y, ldy);
        case WeightType::q4m:
            return run<WeightType::q4m>(args, part, y, ldy);
        default:
            if constexpr (kDotU8TakesBytes) run<WeightType::q8>(args, part, y, ldy);
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
