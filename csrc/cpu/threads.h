// A team of pinned threads that replay ops together, and the barrier between ops.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "ops.h"

namespace fastserve {

// One instruction that tells the core we are spinning.
inline void spin_pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Pins the calling thread to one core; -1 leaves it. Returns whether the kernel agreed.
bool pin_current_thread(int core);

// Threads 1..n-1 belong to the team and sleep between runs; the caller of run() is thread 0.
class Team {
  public:
    // cores: one per thread, -1 = not pinned. cores[0] is the caller's, which the team does not pin.
    explicit Team(std::vector<int> cores);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return num_threads_; }
    // Calls task(worker) on every thread and returns when all are done. Not reentrant.
    void run(const std::function<void(const Worker&)>& task);
    void barrier(int thread_idx);
    // Since the team was made, by whoever calls run(); modulo 2^32. The end of a run is one.
    uint32_t num_barriers() const { return released_.value.load(std::memory_order_relaxed); }

  private:
    struct alignas(128) Flag {
        std::atomic<uint32_t> value{0};
    };
    void loop(int thread_idx, int core);

    int num_threads_;
    std::vector<Flag> arrived_;  // [num_threads] rounds that a thread has come to
    Flag released_;
    Flag generation_;  // raised by run(); a futex word for sleeping threads
    std::atomic<int> sleepers_{0};
    std::atomic<int> waker_core_{-1};
    std::atomic<bool> stop_{false};
    const std::function<void(const Worker&)>* task_ = nullptr;
    std::vector<std::thread> threads_;
};

}  // namespace fastserve
