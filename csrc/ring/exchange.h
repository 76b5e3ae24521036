// How the ranks of a group swap data inside one host: shared memory, flags and an epoch.
// (the essay and the all-reduce part belong to this file too)
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops.h"

namespace fastserve {

class Exchange {
   public:
    int rank() const;
    int size() const;
    // True once the epoch was raised (a rank died, the group closes): every wait returns at once from then on,
    // results are garbage, and the replay loop gives the step up. Kernels throw nothing.
    bool failed() const;
    size_t gather_capacity() const;  // bytes a rank may contribute to one all_gather

    // Collective, called by all threads of the team of every rank with the same bytes. Returns the ranks' parts:
    // rank r's lies at result + r * stride. Valid until the next-but-one collective.
    const uint8_t* all_gather(const void* mine, size_t bytes, size_t* stride, const Worker& worker);
};

}  // namespace fastserve
