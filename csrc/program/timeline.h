// When each thread worked on each op, for those who ask where a step's time goes.
//
// A program without one pays a branch per op and thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <vector>

#include "program/op.h"

namespace fastserve {

// A thread's part of an op, without the barrier behind it. Nanoseconds of the steady clock.
struct Span {
    int64_t begin_ns, end_ns;
};

struct Pass {
    int32_t num_tokens, num_samples;
    uint32_t num_barriers;      // of the team; its last op ends in one
    std::vector<OpCost> costs;  // of each op
    std::vector<Span> spans;    // [num_ops, num_threads]; zeros for an op that had no rows
};

class Timeline {
  public:
    static int64_t now_ns() {
        return std::chrono::duration_cast<std::chrono::nanoseconds>(
                   std::chrono::steady_clock::now().time_since_epoch())
            .count();
    }

    // By whoever replays: around a pass, and by each of its threads for each op.
    void begin_pass(size_t num_ops, int num_threads);
    void add(size_t op, int thread, Span span) { pass_.spans[op * num_threads_ + thread] = span; }
    void end_pass(int32_t num_tokens, int32_t num_samples, uint32_t num_barriers, std::vector<OpCost> costs);

    // The passes since the last time, from any thread.
    std::vector<Pass> take();

  private:
    Pass pass_;  // the one under way
    size_t num_threads_ = 0;
    std::mutex guard_;
    std::vector<Pass> passes_;
};

}  // namespace fastserve
