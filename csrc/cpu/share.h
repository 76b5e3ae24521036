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

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
