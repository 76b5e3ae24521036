// The matmul op: dispatch by weight type, the choice of tiles and the division of work.
#include "cpu/matmul.h"

#include "cpu/kernels.h"
#include "cpu/matmul_blocks.h"
#include "cpu/matmul_tiles.h"
#include "cpu/share.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

bool is_quantised(WeightType type) {
    return type == WeightType::q8 || type == WeightType::q4 || type == WeightType::q4m;
}

int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

// Rows are divided where each thread gets so many, though panels divide as well: a thread then reads the
// activations that it wrote itself, not those of another core's cache (512 x 3072 x 576 in bf16, two threads:
// 4.7 ms, and 5.2 by panels). Of fewer rows the weights, which every thread reads, would show.
constexpr int kMinPartRows = kBlockRows / 2;

}  // namespace

MatmulConfig choose_matmul(int m, WeightType type) {
    if (kNumRegisters < 32)
        return {.max_rows = kMaxTileRows, .max_panels = 1, .chunk = m > kMaxTileRows ? 512 : 0};
    // One panel at a time is one long stream of weights, which the prefetchers follow from panel to panel: a
    // core of a Zen 4 reads 36 GB/s of DRAM so, and 17 in four streams side by side, each as short as a panel
    // of 576 weights. Eight rows then keep the dot products busy (bf16, 32 rows: 114 G products/s, and 91 in
    // tiles of 6 x 4). A chunk is as long as its weights and rows are near, as the sums pass through y behind
    // it.
    if (is_quantised(type) || type == WeightType::bf16)
        return {.max_rows = 8, .max_panels = 1, .chunk = m > 8 ? kMaxChunk : 0};
    if (m <= 2) return {.max_rows = 2, .max_panels = 1, .chunk = 0};
    // 6 x 4 = 24 accumulators, 4 weights, 1 broadcast. 4 panels x 128 k x 64 bytes = 32 KiB of f32.
    return {.max_rows = kMaxTileRows, .max_panels = 4, .chunk = m > kMaxTileRows ? 128 : 0};
}

MatmulPart divide_matmul(int rows, int panels, int thread_idx, int num_threads) {
    constexpr int kTileRows = kNumRegisters < 32 ? kMaxTileRows : 8;
    int best_splits = 1, best_cost = 0;
    for (int splits = 1; splits <= num_threads; ++splits) {
        if (num_threads % splits != 0) continue;
        const int cost = ceil_div(ceil_div(rows, splits), kTileRows) * ceil_div(panels, num_threads / splits);
        const bool serves_as_well = rows / splits >= kMinPartRows && cost <= best_cost + best_cost / 16;
        const bool is_cheaper = splits == 1 || cost < best_cost;
        if (is_cheaper || serves_as_well) best_splits = splits;
        if (is_cheaper) best_cost = cost;
    }
    const int columns = num_threads / best_splits;  // threads side by side along N
    const int row_part = thread_idx / columns, column_part = thread_idx % columns;
    const auto cut = [](int total, int part, int parts) {
        return static_cast<int>(int64_t{total} * part / parts);
    };
    return {.row_begin = cut(rows, row_part, best_splits),
            .row_end = cut(rows, row_part + 1, best_splits),
            .panel_begin = cut(panels, column_part, columns),
            .panel_end = cut(panels, column_part + 1, columns)};
}

void matmul_prepare(const MatmulArgs& args, const Worker& worker) {
    if (args.prepared) return;
    const OperandWriter operand({args.scratch, args.w.type, args.activation_bits}, args.rows, args.w.k);
    if (!operand) return;
    share_columns(args.rows, args.w.k, kQuantBlock, worker, [&](int64_t row, int32_t begin, int32_t end) {
        operand.write(row, begin, end, args.x + row * args.ldx + begin);
    });
    team_barrier(worker);
}

void matmul_tile(const MatmulArgs& args, int row_begin, int row_end, int panel_begin, int panel_end, float* y,
                 int64_t ldy) {
    const MatmulPart part = {row_begin, row_end, panel_begin, panel_end};
    if (is_quantised(args.w.type))
        matmul_tile_quantised(args, part, y, ldy);
    else
        matmul_tile_plain(args, part, y, ldy);
}

void matmul(const MatmulArgs& shared, const Worker& worker) {
    MatmulArgs args = shared;
    args.scratch = own_copy(args.scratch, args.w.type, args.copy_rows, args.rows, args.w.k, worker);
    matmul_prepare(args, worker);
    if (args.epilogue == Epilogue::silu_mul) return matmul_silu_mul(args, worker);
    if (args.bias) {
        return for_each_product_row(args, worker, [&](int row, int begin, int columns, const float* product) {
            add_columns(product, args.bias + begin, columns, args.y + row * args.ldy + begin);
        });
    }
    const int panels = ceil_div(args.w.n, kPanel);
    const MatmulPart part = divide_matmul(args.rows, panels, worker.thread_idx, worker.num_threads);
    matmul_tile(args, part.row_begin, part.row_end, part.panel_begin, part.panel_end, args.y, args.ldy);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
