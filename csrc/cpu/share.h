// How an op's items are shared among the threads of a team: contiguous and even.
#pragma once

#include <cstdint>

#include "ops.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

struct Share {
    int64_t begin, end;
};

[[gnu::always_inline]] inline Share share_of(int64_t num_items, const Worker& worker) {
    return {num_items * worker.thread_idx / worker.num_threads,
            num_items * (worker.thread_idx + 1) / worker.num_threads};
}

// Of rows that are cut into items of `item` columns: part(row, begin, end) for each row of which this thread
// has columns.
template <class Part>
[[gnu::always_inline]] inline void share_columns(int64_t rows, int32_t num_columns, int32_t item,
                                                 const Worker& worker, Part part) {
    const int64_t items_per_row = (num_columns + item - 1) / item;
    const Share share = share_of(rows * items_per_row, worker);
    for (int64_t i = share.begin; i < share.end;) {
        const int64_t row = i / items_per_row, first = i - row * items_per_row;
        const int64_t last = first + share.end - i < items_per_row ? first + share.end - i : items_per_row;
        const int64_t end = last * item < num_columns ? last * item : num_columns;
        part(row, static_cast<int32_t>(first * item), static_cast<int32_t>(end));
        i += last - first;
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
