#include "benchmark/placement.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/threads.h"

namespace fastserve {

namespace {

using Clock = std::chrono::steady_clock;

// The median of batches: one that was interrupted does not count.
constexpr int kBatches = 15;
// A peer that has not answered by then has lost its core to somebody else.
constexpr int kSpinsBeforeYield = 20'000;

struct alignas(128) Line {
    std::atomic<int> value{0};
};

void await(const Line& line, int wanted) {
    for (int spins = 0; line.value.load(std::memory_order_acquire) != wanted; ++spins)
        if (spins > kSpinsBeforeYield) sched_yield();
}

}  // namespace

std::optional<double> measure_one_way_ns(int core_a, int core_b, int ping_pongs) {
    if (ping_pongs < 1)
        throw std::invalid_argument("ping_pongs must be >= 1, got " + std::to_string(ping_pongs));
    // One line carries ball and answer: even is with a, odd with b.
    Line ball;
    std::atomic<int> pinned{0};
    std::atomic<bool> failed{false};
    const int batch = (ping_pongs + kBatches - 1) / kBatches;
    const auto meet = [&](int core) {
        if (!pin_current_thread(core)) failed = true;
        pinned.fetch_add(1);
        while (pinned.load() < 2) sched_yield();
        return !failed.load();
    };
    std::vector<double> one_way_ns;
    std::thread b([&] {
        if (!meet(core_b)) return;
        for (int i = 0; i < (kBatches + 1) * batch; ++i) {
            await(ball, 2 * i + 1);
            ball.value.store(2 * i + 2, std::memory_order_release);
        }
    });
    std::thread a([&] {
        if (!meet(core_a)) return;
        int i = 0;
        for (int n = -1; n < kBatches; ++n) {  // batch -1 warms up
            const Clock::time_point start = Clock::now();
            for (int end = i + batch; i < end; ++i) {
                ball.value.store(2 * i + 1, std::memory_order_release);
                await(ball, 2 * i + 2);
            }
            const double ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
            if (n >= 0) one_way_ns.push_back(ns / (2.0 * batch));
        }
    });
    a.join();
    b.join();
    if (failed) return std::nullopt;
    std::nth_element(one_way_ns.begin(), one_way_ns.begin() + kBatches / 2, one_way_ns.end());
    return one_way_ns[kBatches / 2];
}

}  // namespace fastserve
