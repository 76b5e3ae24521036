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

// This thread's part of x w^T, row by row: visit(row, begin, columns, product), of columns [begin, begin +
// columns). To be called after matmul_prepare.
template <class Visit>
FASTSERVE_INLINE void for_each_product_row(const MatmulArgs& args, const Worker& worker, Visit visit) {
    const int panels = (args.w.n + kPanel - 1) / kPanel;
    const MatmulPart part = divide_matmul(args.rows, panels, worker.thread_idx, worker.num_threads);
    alignas(64) float product[kBlockFloats];
    for_each_block(part, kPanel, [&](const MatmulPart& block) {
        const int begin = block.panel_begin * kPanel, padded = block.panel_end * kPanel;
        const int columns = (padded < args.w.n ? padded : args.w.n) - begin;
        const int64_t ld = padded - begin;
        float* const of_row_0 = product - block.row_begin * ld;
        matmul_tile(args, block.row_begin, block.row_end, block.panel_begin, block.panel_end,
                    of_row_0 - begin, ld);
        for (int row = block.row_begin; row < block.row_end; ++row)
            visit(row, begin, columns, of_row_0 + row * ld);
    });
}

// to[i] = x[i] + y[i] for i < n; to may be x or y.
FASTSERVE_INLINE void add_columns(const float* x, const float* y, int n, float* to) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) store(to + i, add(load(x + i), load(y + i)));
    if (i < n) store_n(to + i, add(load_n(x + i, n - i), load_n(y + i, n - i)), n - i);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
