// The first product of a gated MLP with its activation: a thread computes columns of gate and the same of up,
// and hands silu(gate) * up on while both are in its caches.
#include "cpu/matmul_blocks.h"
#include "cpu/silu_mul.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

void matmul_silu_mul(const MatmulArgs& args, const Worker& worker) {
    // Threads divide blocks of kQuantBlock columns, so that each writes whole blocks of an operand.
    constexpr int kPanels = kQuantBlock / kPanel;
    const int f = args.w.n / 2;
    const OperandWriter operand(args.operand, args.rows, f);
    const MatmulPart part = divide_matmul(args.rows, f / kQuantBlock, worker.thread_idx, worker.num_threads);
    alignas(64) float product[kBlockFloats];
    for_each_block(part, 2 * kQuantBlock, [&](const MatmulPart& block) {
        const int begin = block.panel_begin * kQuantBlock, end = block.panel_end * kQuantBlock;
        const int64_t ld = 2 * (end - begin);
        float* const gate = product - block.row_begin * ld;  // of row 0
        float* const up = gate + (end - begin);
        const int panel_begin = block.panel_begin * kPanels, panel_end = block.panel_end * kPanels;
        const int up_panel = f / kPanel;
        matmul_tile(args, block.row_begin, block.row_end, panel_begin, panel_end, gate - begin, ld);
        matmul_tile(args, block.row_begin, block.row_end, up_panel + panel_begin, up_panel + panel_end,
                    up - f - begin, ld);
        for (int row = block.row_begin; row < block.row_end; ++row) {
            float* const columns = gate + row * ld;
            float* const out = args.y ? args.y + row * args.ldy + begin : columns;
            silu_mul_columns(columns, up + row * ld, end - begin, out);
            operand.write(row, begin, end, out);
        }
    });
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
