// Faults that tests ask a rank to commit: it dies, stops, waits or is slow at a named op of its program.
//
// A program without faults pays one branch per op and one per published segment.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "ops.h"

namespace fastserve {

class Exchange;

enum class FaultAction : int32_t { kill, stop, delay, slow };

struct Fault {
    FaultAction action;
    std::string op;  // its name in ops.h; "": every op
    int64_t call;    // which call of that op, from 1; 0: every one
    int64_t
        segment;    // strike before this segment of the op's exchange is published, from 1; 0: before the op
    double amount;  // delay: seconds; slow: how many times as long the op takes
};

class Faults {
  public:
    // exchange may be null. Throws std::invalid_argument naming what is wrong.
    Faults(std::vector<Fault> faults, Exchange* exchange);
    ~Faults();
    Faults(const Faults&) = delete;
    Faults& operator=(const Faults&) = delete;

    // Around every op, by thread 0 of the team.
    void before(const char* op);
    void after();

  private:
    using Clock = std::chrono::steady_clock;
    struct Planned {
        Fault fault;
        int64_t calls = 0;
    };
    static void published(void* self);
    void count_published();

    std::vector<Planned> planned_;
    Exchange* exchange_;
    const Fault* in_exchange_ = nullptr;  // waits for its segment of the op under way
    std::atomic<int64_t> num_published_{0};
    double slowness_ = 1.0;  // of the op under way
    Clock::time_point start_;
    int64_t waited_ns_ = 0;
};

}  // namespace fastserve
