// Walks a part of y in tiles: blocks of rows, panels, chunks of K, then rows, so that a chunk's weights stay
// near while a block's rows stream past. A Kind computes one tile of one size.
#pragma once

#include "cpu/matmul.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// Lanes of panel p of a tile that y has.
FASTSERVE_INLINE int lanes_of(int num_columns, int p) {
    const int lanes = num_columns - p * kPanel;
    return lanes < kPanel ? lanes : kPanel;
}

template <int R, int P>
FASTSERVE_INLINE void load_chain(Vec (&acc)[R][P], const float* y, int64_t ldy, int num_columns, bool first) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p)
            acc[r][p] = first ? zero() : load_n(y + r * ldy + p * kPanel, lanes_of(num_columns, p));
}

template <int R, int P>
FASTSERVE_INLINE void store_chain(const Vec (&acc)[R][P], float* y, int64_t ldy, int num_columns) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) store_n(y + r * ldy + p * kPanel, acc[r][p], lanes_of(num_columns, p));
}

// Rows of the tallest tile. 8 Vecs of registers: six accumulators, a weight, a broadcast. Fewer: two rows,
// and taller tiles, half a minute's work for the compiler, are not made.
constexpr int kMaxTileRows = kNumRegisters < 8 ? 2 : 6;

// kind.tile<R, P>(row) for all rows of a panel group, R being 6, 4, 2 or 1 and R x P within Kind::kMaxTile.
template <int P, class Kind>
FASTSERVE_INLINE void walk_rows(const Kind& kind, int row, int row_end, int max_rows) {
    if constexpr (Kind::kMaxRows >= 8 && 8 * P <= Kind::kMaxTile)
        for (; max_rows >= 8 && row + 8 <= row_end; row += 8) kind.template tile<8, P>(row);
    if constexpr (kMaxTileRows >= 6 && 6 * P <= Kind::kMaxTile)
        for (; max_rows >= 6 && row + 6 <= row_end; row += 6) kind.template tile<6, P>(row);
    if constexpr (kMaxTileRows >= 4 && 4 * P <= Kind::kMaxTile)
        for (; max_rows >= 4 && row + 4 <= row_end; row += 4) kind.template tile<4, P>(row);
    if constexpr (2 * P <= Kind::kMaxTile)
        for (; row + 2 <= row_end; row += 2) kind.template tile<2, P>(row);
    for (; row < row_end; ++row) kind.template tile<1, P>(row);
}

// kind.template begin<P>(panel, k_begin, k_end) announces what the next tiles read.
template <int P, class Kind>
FASTSERVE_INLINE void walk_chunks(Kind& kind, int k, const MatmulPart& part, int panel,
                                  const MatmulConfig& config) {
    const int chunk = config.chunk > 0 ? config.chunk : k;
    for (int begin = 0; begin < k; begin += chunk) {
        kind.template begin<P>(panel, begin, begin + chunk < k ? begin + chunk : k);
        walk_rows<P>(kind, part.row_begin, part.row_end, config.max_rows);
    }
}

template <class Kind>
void walk_panels(Kind& kind, int k, const MatmulPart& part, const MatmulConfig& config) {
    int panel = part.panel_begin;
    if constexpr (kNumRegisters >= 32 && Kind::kMaxPanels >= 4) {
        for (; config.max_panels >= 4 && panel + 4 <= part.panel_end; panel += 4)
            walk_chunks<4>(kind, k, part, panel, config);
        for (; config.max_panels >= 2 && panel + 2 <= part.panel_end; panel += 2)
            walk_chunks<2>(kind, k, part, panel, config);
    }
    for (; panel < part.panel_end; ++panel) walk_chunks<1>(kind, k, part, panel, config);
}

template <class Kind>
void walk_tiles(Kind& kind, int k, const MatmulPart& part, const MatmulConfig& config) {
    for (MatmulPart block = part; block.row_begin < part.row_end; block.row_begin = block.row_end) {
        block.row_end =
            block.row_begin + kBlockRows < part.row_end ? block.row_begin + kBlockRows : part.row_end;
        walk_panels(kind, k, block, config);
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
