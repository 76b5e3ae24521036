// Tiles of q8, q4 and q4m weights with activations in codes of 8 bits.
//
// Dot products decide here, and each multiplication behind them takes the place of one. There is one a block,
// by the weights' scale: the power in the activations' scale is in the sum already (BytePair), and its
// mantissa in one of kMantissas vectors of weights' scales, made once for all rows of a chunk (512 x 576 of
// 1536 columns: 6 % faster than with a multiplication by the product of both scales; eight mantissas instead
// of four lose half of that). Fewer rows multiply, for the same bits.
//
// q4m's minima are multiplied two blocks at a time, as pairs of bfloat16: scale * code + minimum is
// scale * (code - 8) + *centre*, and a centre, about 0, loses by the rounding far less than the codes of the
// activations do.
#include "cpu/matmul_quantised.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

static_assert(sizeof(BytePair) == 2 * kQuantBlock + 20);  // matmul_scratch_bytes
constexpr int kMaxBlocks = kMaxChunk / kQuantBlock;
constexpr int kMinSharing = 24;  // rows; of 16 the vectors take the time that they save

FASTSERVE_INLINE constexpr float mantissa(int i) {
    return 1 + static_cast<float>(i) / kMantissas;
}

// Of blocks w and the one behind it; of the last block of an odd number, with 0.
template <WeightType type>
FASTSERVE_INLINE VecI centres_of(const uint8_t* w, bool has_second) {
    using Layout = Packed<type>;
    const auto centre = [](const uint8_t* block) __attribute__((always_inline)) {
        return fma(Layout::scale(block), splat(8.0f), Layout::minimum(block));
    };
    return to_bf16_pairs(centre(w), has_second ? centre(w + Layout::kBlockBytes) : zero());
}

// What many rows share of a chunk's weights.
struct Shared {
    alignas(kVectorBytes) uint8_t centres[kMaxBlocks / 2][kVectorBytes];
    alignas(kVectorBytes) float scales[kMaxBlocks][kMantissas][kPanel];  // times each mantissa
};

// Each mantissa in all lanes.
struct MantissaLanes {
    alignas(kVectorBytes) float of[kMantissas][kPanel];
};
constexpr MantissaLanes kMantissaLanes = [] {
    MantissaLanes lanes{};
    for (int i = 0; i < kMantissas; ++i)
        for (float& lane : lanes.of[i]) lane = mantissa(i);
    return lanes;
}();

// The vector that belongs to the mantissa of an origin, whose low 16 bits say where it lies.
FASTSERVE_INLINE Vec of_mantissa(const float (&vectors)[kMantissas][kPanel], const uint8_t* origin) {
    uint16_t offset;
    __builtin_memcpy(&offset, origin, sizeof offset);
    return load(reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(vectors) + offset));
}

template <WeightType type, bool kShares>
struct OneDigit : Tiles<type> {
    using Layout = Packed<type>;
    using Tiles<type>::Tiles;

    Shared* shared = nullptr;  // with kShares

    template <int P>
    FASTSERVE_INLINE void begin(int panel, int k_begin, int k_end) {
        this->begin_chunk(panel, k_begin, k_end);
        if constexpr (kShares) {
            for (int b = 0; b < this->num_blocks; ++b) {
                const uint8_t* const w = this->chunk_w + b * Layout::kBlockBytes;
                const Vec scale = Layout::scale(w);
#pragma GCC unroll 8
                for (int i = 0; i < kMantissas; ++i)
                    store(shared->scales[b][i], mul(scale, splat(mantissa(i))));
                if constexpr (Layout::kHasMinimum)
                    if (b % 2 == 0)
                        store(shared->centres[b / 2], centres_of<type>(w, b + 1 < this->num_blocks));
            }
        }
    }

    // acc += block w, the chunk's b-th, . the codes of one half of a pair of blocks.
    template <int kHalf, int R>
    FASTSERVE_INLINE void add_block(Vec (&acc)[R][1], const uint8_t* w, int b,
                                    const RowsOfBlocks<BytePair>& rows) const {
        const auto word = [&](int r, int64_t offset) __attribute__((always_inline)) {
            return rows.at(r, offset + kHalf * static_cast<int64_t>(sizeof(int32_t)));
        };
        Tiles<type>::template prefetch_ahead<R>(w);
        VecI sums[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r] = broadcast4(word(r, offsetof(BytePair, start)));
        DigitProducts<type>::add(
            sums, w, [&](int r) __attribute__((always_inline)) { return rows.at(r, kHalf * kQuantBlock); });
        const Vec scale = kShares ? zero() : Layout::scale(w);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const uint8_t* const origin = word(r, offsetof(BytePair, origin));
            const Vec sum = sub(as_float(sums[r]), as_float(broadcast4(origin)));
            const Vec factor = kShares ? of_mantissa(shared->scales[b], origin)
                                       : mul(scale, of_mantissa(kMantissaLanes.of, origin));
            acc[r][0] = fma(sum, factor, acc[r][0]);
        }
    }

    template <int R>
    FASTSERVE_INLINE void add_minima(Vec (&acc)[R][1], const uint8_t* w, int b,
                                     const RowsOfBlocks<BytePair>& rows) const {
        if constexpr (Layout::kHasMinimum) {
            const VecI pair =
                kShares ? load(shared->centres[b / 2]) : centres_of<type>(w, b + 1 < this->num_blocks);
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
            add_block<0>(acc, w, b, rows);
            add_block<1>(acc, w + Layout::kBlockBytes, b + 1, rows);
            add_minima(acc, w, b, rows);
            rows.advance();
            w += 2 * Layout::kBlockBytes;
        }
        if (b < this->num_blocks) {
            add_block<0>(acc, w, b, rows);
            add_minima(acc, w, b, rows);
        }
        store_chain(acc, out, this->ldy, this->num_columns);
    }
};

template <WeightType type>
void run(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy) {
    const MatmulConfig config = choose_matmul(args.rows, type);
    if (args.rows < kMinSharing) {
        OneDigit<type, false> kind(args, y, ldy);
        return walk_tiles(kind, args.w.k, part, config);
    }
    Shared shared;
    OneDigit<type, true> kind(args, y, ldy);
    kind.shared = &shared;
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
