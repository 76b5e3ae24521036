// A product that goes through an epilogue at once, block by block: a block of rows and columns stays in the
// second-level cache from the last chunk of K to the epilogue, and the product itself never goes to memory.
#pragma once

#include "cpu/matmul.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// 128 KB: a quarter of a Zen 3's second level, beside the weights and the activations that stream past.
constexpr int kBlockFloats = 32 * 1024;

// visit(block) for all of the part, whose panels stand for `columns` columns each. A block has at most
// kBlockFloats.
template <class Visit>
FASTSERVE_INLINE void for_each_block(const MatmulPart& part, int columns, Visit visit) {
    const int rows = part.row_end - part.row_begin;
    if (rows == 0) return;
    const int step = rows < kBlockRows ? rows : kBlockRows, panels = kBlockFloats / (step * columns);
    for (int panel = part.panel_begin; panel < part.panel_end; panel += panels)
        for (int row = part.row_begin; row < part.row_end; row += step)
            visit(MatmulPart{.row_begin = row,
                             .row_end = row + step < part.row_end ? row + step : part.row_end,
                             .panel_begin = panel,
                             .panel_end = panel + panels < part.panel_end ? panel + panels : part.panel_end});
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
