// Sum over the ranks of a matrix that each has: copied into the symmetric buffer, summed by the ring. A
// producer that can write its partial sums there itself (matmul_all_reduce) saves the copy.
#include "cpu/kernels.h"
#include "cpu/ring_reduce.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

constexpr SliceSize kSlice = {.max_bytes = 512 * 1024, .min_rows = 1};

void all_reduce(const AllReduceArgs& args, const Worker& worker) {
    if (!args.exchange || args.exchange->size() == 1) return;
    const auto copy = [&](const Segment& segment, RowSlice slice, float* to) {
        const int32_t columns = segment.column_end - segment.column_begin;
        for (int32_t row = slice.row_begin; row < slice.row_end; ++row, to += segment.ld()) {
            const float* from = args.x + row * args.ldx + segment.column_begin;
            int32_t column = 0;
            for (; column + kLanes <= columns; column += kLanes) store(to + column, load(from + column));
            if (column < columns) store(to + column, load_n(from + column, columns - column));
        }
    };
    reduce_in_slices(*args.exchange, args.rows, args.d, {args.x, args.ldx}, kSlice, worker, copy,
                     [](RowSlice) {});
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
