#include "ring/wait.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>

#include "cpu/threads.h"

namespace fastserve {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpin = std::chrono::microseconds(2);
constexpr auto kYield = std::chrono::milliseconds(1);
constexpr int kPollsPerClock = 16;
constexpr long kFirstSleepNs = 200'000;      // a wake that a publisher missed costs at most this
constexpr long kLongestSleepNs = 5'000'000;  // how late a raised epoch may be noticed; under 1 % of a core

// A futex word has 32 bits: the low half of the flag, which changes whenever the flag does.
uint32_t* futex_word(Flag& flag) {
    return reinterpret_cast<uint32_t*>(&flag.value);
}

bool reached(const Flag& flag, uint64_t value) {
    return flag.value.load(std::memory_order_acquire) >= value;
}

void sleep_on(RankSlot& slot, Flag& flag, uint64_t value, long limit_ns) {
    slot.sleepers.fetch_add(1);
    const uint64_t seen = flag.value.load();
    if (seen < value) {
        const timespec limit{0, limit_ns};
        syscall(SYS_futex, futex_word(flag), FUTEX_WAIT, static_cast<uint32_t>(seen), &limit, nullptr, 0);
    }
    slot.sleepers.fetch_sub(1);
}

// True when nobody will publish any more; says so to the group.
bool hopeless(const Waiting& waiting, RankSlot& slot, const Flag& flag, uint64_t value) {
    if (waiting.region.failed()) return true;
    if (slot.state.load(std::memory_order_acquire) != static_cast<int32_t>(RankState::left)) return false;
    if (reached(flag, value)) return false;  // published, then left
    waiting.region.raise_epoch(Loss::left, slot.pid.load(std::memory_order_acquire));
    return true;
}

}  // namespace

bool wait_for_flag(const Waiting& waiting, RankSlot& publisher, Flag& flag, uint64_t value) {
    // A microsecond at most, in which reading the clock would be much.
    for (int i = 0; i < kPollsPerClock; ++i) {
        if (reached(flag, value)) return true;
        if (!waiting.crowded) spin_pause();
    }
    const auto start = Clock::now();
    const auto spin_end = waiting.crowded ? start : start + kSpin;
    long sleep_ns = kFirstSleepNs;
    for (;;) {
        if (reached(flag, value)) return true;
        if (hopeless(waiting, publisher, flag, value)) return reached(flag, value);
        const auto now = Clock::now();
        if (now < spin_end) {
            for (int i = 0; i < kPollsPerClock && !reached(flag, value); ++i) spin_pause();
        } else if (now < start + kYield) {
            sched_yield();
        } else {
            if (waiting.interrupted && waiting.interrupted())
                waiting.region.raise_epoch(Loss::interrupted, getpid());
            waiting.waiter.beats.fetch_add(1, std::memory_order_relaxed);
            sleep_on(publisher, flag, value, sleep_ns);
            sleep_ns = std::min(2 * sleep_ns, kLongestSleepNs);
        }
    }
}

void publish_flag(RankSlot& publisher, Flag& flag, uint64_t value) {
    flag.value.store(value, std::memory_order_release);
    if (publisher.sleepers.load(std::memory_order_relaxed) > 0)
        syscall(SYS_futex, futex_word(flag), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace fastserve
