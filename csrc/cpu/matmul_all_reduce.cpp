// A row-parallel matmul and the all-reduce of its partial sums, fused: a tile is one segment, written by the
// matmul straight into the memory of the rank that adds it, in the order of the ring: the chunk that travels
// furthest is computed first. A finished tile is published at once, so the peers sum it while the next ones
// are computed. A norm behind it takes the rows of a slice while they are in the caches.
#include "cpu/kernels.h"
#include "cpu/matmul_blocks.h"
#include "cpu/ring_reduce.h"
#include "cpu/rms_norm.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// Partial sums that are added soon are still in the caches: of 512 rows of 576 columns (SmolLM2, two ranks,
// one L3) a fifth of the exchange shows when they go in slices of 110, more than all of it when they go at
// once. 128 rows hide that the weights are read again.
constexpr SliceSize kSlice = {.max_bytes = 256 * 1024, .min_rows = 128};

namespace {

// y and the operand: norm of the residual, which has been added to.
RmsNormArgs norm_of(const MatmulAllReduceArgs& args) {
    RmsNormArgs norm = args.norm;
    norm.x = nullptr;
    norm.rows = args.matmul.rows;
    norm.d = args.matmul.w.n;
    norm.out = args.matmul.y;
    norm.ldo = args.matmul.ldy;
    return norm;
}

// residual += x w^T.
void add_product(const MatmulAllReduceArgs& args, const Worker& worker) {
    for_each_product_row(args.matmul, worker, [&](int row, int begin, int columns, const float* product) {
        float* const residual = args.norm.residual + row * args.norm.ldr + begin;
        add_columns(residual, product, columns, residual);
    });
}

void matmul_alone(const MatmulAllReduceArgs& args, const Worker& worker) {
    if (!args.norm.weight) return matmul(args.matmul, worker);
    matmul_prepare(args.matmul, worker);
    add_product(args, worker);
    team_barrier(worker);
    RmsNormArgs norm = norm_of(args);
    MatmulOperand& operand = norm.operand;
    const bool copies = norm.rows <= operand.copy_rows;
    operand.data = own_copy(operand.data, operand.type, operand.copy_rows, norm.rows, norm.d, worker);
    norm_rows(norm, 0, norm.rows, copies ? Worker{worker.team, 0, 1} : worker);
}

}  // namespace

void matmul_all_reduce(const MatmulAllReduceArgs& args, const Worker& worker) {
    const MatmulArgs& matmul_args = args.matmul;
    if (!args.exchange || args.exchange->size() == 1) return matmul_alone(args, worker);
    matmul_prepare(matmul_args, worker);
    const auto tile = [&](const Segment& segment, RowSlice slice, float* to) {
        // matmul_tile counts rows and columns from those of y.
        float* y = to - slice.row_begin * int64_t{segment.ld()} - segment.column_begin;
        matmul_tile(matmul_args, slice.row_begin, slice.row_end, segment.panel_begin, segment.panel_end, y,
                    segment.ld());
    };
    const bool norms = args.norm.weight != nullptr;
    const Sums sums =
        norms ? Sums{args.norm.residual, args.norm.ldr, true} : Sums{matmul_args.y, matmul_args.ldy};
    reduce_in_slices(*args.exchange, matmul_args.rows, matmul_args.w.n, sums, kSlice, worker, tile,
                     [&](RowSlice slice) {
                         if (!norms) return;
                         team_barrier(worker);
                         norm_rows(norm_of(args), slice.row_begin, slice.row_end, worker);
                     });
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
