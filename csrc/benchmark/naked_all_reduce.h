// What a sum of buffers that two ranks share takes at least on this machine: each adds its half and writes it
// to both, between two meetings. No loss is noticed, no wait sleeps, nothing but fp32 and two ranks: the
// limit that Collectives::all_reduce_symmetric is measured against.
#pragma once

#include <cstdint>

#include "ring/shared_region.h"

namespace fastserve {

class NakedAllReduce {
  public:
    // A flag in each rank's shared memory, zero at first, which the other one raises.
    NakedAllReduce(Flag& own, Flag& peer, int rank) : own_(own), peer_(peer), rank_(rank) {}

    // count: of floats, a multiple of 32. The same calls on both ranks.
    void sum(float* own, float* peer, int64_t count);

  private:
    void meet();

    Flag &own_, &peer_;
    int rank_;
    uint64_t number_ = 0;
};

}  // namespace fastserve
