// What a sum of buffers that two ranks share takes at least on this machine: each adds its half and writes it
// to both, between two meetings. No loss is noticed, no wait sleeps, nothing but fp32 and two ranks: the
// limit that Collectives::all_reduce_symmetric is measured against.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastserve {

// In each rank's shared memory: raised by the other one.
struct alignas(128) MeetingFlag {
    std::atomic<uint64_t> value;
};

class NakedAllReduce {
  public:
    // The ranks' flags, zero at first.
    NakedAllReduce(MeetingFlag& own, MeetingFlag& peer, int rank) : own_(own), peer_(peer), rank_(rank) {}

    // count: of floats, a multiple of 32. The same calls on both ranks.
    void sum(float* own, float* peer, int64_t count);

  private:
    void meet();

    MeetingFlag &own_, &peer_;
    int rank_;
    uint64_t number_ = 0;
};

}  // namespace fastserve
