// A row-parallel matmul and the all-reduce of its partial sums, fused: a tile is one segment, written by the
// matmul straight into the memory of the rank that adds it, in the order of the ring: the chunk that travels
// furthest is computed first. A finished tile is published at once, so the peers sum it while the next ones
// are computed. A norm behind it takes the rows of a slice while they are in the caches.
#include "cpu/kernels.h"
#include "cpu/matmul.h"
#include "cpu/ring_reduce.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// Partial sums that are added soon are still in the caches: of 512 rows of 576 columns (SmolLM2, two ranks,
// one L3) a fifth of the exchange shows when they go in slices of 110, more than all of it when they go at
// once. 128 rows hide that the weights are read again.
constexpr SliceSize kSlice = {.max_bytes = 256 * 1024, .min_rows = 128};

namespace {

// y = norm of (residual + x); x null: of the residual, which has been added to.
void norm_rows(const MatmulAllReduceArgs& args, const float* x, RowSlice slice, const Worker& worker) {
    RmsNormArgs norm = args.norm;
    norm.x = x;
    norm.ldx = args.matmul.ldy;
    norm.residual += slice.row_begin * norm.ldr;
    norm.rows = slice.rows();
    norm.d = args.matmul.w.n;
    norm.out = args.matmul.y + slice.row_begin * args.matmul.ldy;
    norm.ldo = args.matmul.ldy;
    rms_norm(norm, worker);
}

void matmul_alone(const MatmulAllReduceArgs& args, const Worker& worker) {
    matmul(args.matmul, worker);
    if (!args.norm.weight) return;
    team_barrier(worker);
    norm_rows(args, args.matmul.y, {0, args.matmul.rows}, worker);
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
                         norm_rows(args, nullptr, slice, worker);
                     });
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
