// Compiled without sanitizers: the scheduler's own bookkeeping would order what the kernel did not.
#include "emulator.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "fiber.h"

extern "C" {
void __tsan_acquire(void* address) __attribute__((weak));
void __tsan_release(void* address) __attribute__((weak));
}

namespace fastserve::cuda_host {

namespace {

// Of each fiber: the copies that it waits for, then its stack.
constexpr size_t kFiberBytes = 128 * 1024;
constexpr size_t kCopiesBytes = sizeof(AsyncCopies::Entry) * AsyncCopies::kMaxCopies;

// Nothing but spinning for so long is a hang.
std::chrono::seconds hang_after() {
    const char* seconds = std::getenv("FASTSERVE_EMULATOR_HANG_S");
    return std::chrono::seconds(seconds != nullptr ? std::atoi(seconds) : 60);
}

enum class State { kReady, kSpinning, kAtBlockBarrier, kAtWarpBarrier, kAtWarpExchange, kEnded };

const char* name_of(State state) {
    constexpr const char* kNames[] = {
        "ready", "spinning", "at __syncthreads", "at __syncwarp", "at an op of its warp", "ended"};
    return kNames[static_cast<int>(state)];
}

struct ThreadFiber {
    std::optional<Fiber> fiber;
    int thread = 0;
    State state = State::kReady;
    AsyncCopies copies;
};

// Those who arrive wait for all who have not ended. Arrivals of two rounds on end use different words, so
// that who is slow to leave is not ordered behind the next round.
struct Barrier {
    int arrived = 0;
    unsigned round = 0;
    char words[2];

    void* word() { return &words[round % 2]; }
};

struct Warp {
    Barrier barrier, exchange;
    bool has_ended = false;  // one of its threads
    unsigned char given[2][kWarp * kMaxExchange];
};

// The memory of blocks that ended, for those to come: mapping it, and the first touch of each page, takes
// longer than most kernels. Not under ThreadSanitizer, which would see fibers that nothing orders write to
// one stack.
class FiberMemory {
  public:
    static bool is_watched() { return __tsan_acquire != nullptr; }

    void* take(size_t bytes) {
        {
            const std::lock_guard lock(guard_);
            if (const auto found = free_.find(bytes); found != free_.end())
                return free_.extract(found).mapped();
        }
        void* memory =
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return memory == MAP_FAILED ? nullptr : memory;
    }

    void give(void* memory, size_t bytes) {
        if (is_watched()) {
            munmap(memory, bytes);
            return;
        }
        const std::lock_guard lock(guard_);
        free_.emplace(bytes, memory);
    }

  private:
    std::mutex guard_;
    std::multimap<size_t, void*> free_;
};
FiberMemory fiber_memory;

class Block;
thread_local Block* current_block = nullptr;

class Block {
  public:
    Block(const Launch& launch, const std::function<void()>& kernel, int index)
        : launch_(launch),
          kernel_(kernel),
          index_(index),
          random_(launch.seed * 0x9E3779B97F4A7C15u + index + 1) {}

    ~Block() {
        if (memory_ != nullptr) give_memory();
        std::free(shared_);
    }

    void run() {
        memory_ = static_cast<unsigned char*>(fiber_memory.take(memory_bytes()));
        if (memory_ == nullptr) fail("no memory for the stacks of the fibers");
        // Exactly as large as was asked, for AddressSanitizer.
        if (launch_.shared_bytes > 0) {
            if (posix_memalign(&shared_, 128, launch_.shared_bytes) != 0) fail("no memory for shared memory");
            std::memset(shared_, 0xff, launch_.shared_bytes);
        }
        current_block = this;
        Fiber scheduler;
        scheduler_ = &scheduler;
        warps_ = std::vector<Warp>((launch_.threads + kWarp - 1) / kWarp);
        fibers_ = std::vector<ThreadFiber>(launch_.threads);
        num_living_ = launch_.threads;
        ready_.reserve(launch_.threads);  // so that no fiber ever allocates: sanitizers watch the heap
        spinning_.reserve(launch_.threads);
        for (int i = 0; i < launch_.threads; ++i) {
            fibers_[i].thread = i;
            unsigned char* own = memory_ + kFiberBytes * i;
            fibers_[i].copies = AsyncCopies(reinterpret_cast<AsyncCopies::Entry*>(own));
            fibers_[i].fiber.emplace(&Block::enter, &fibers_[i], own + kCopiesBytes,
                                     kFiberBytes - kCopiesBytes);
            ready_.push_back(&fibers_[i]);
        }
        moved();
        while (num_living_ > 0) {
            if (ready_.empty()) next_turn();
            run_one();
        }
        current_block = nullptr;
        if (!FiberMemory::is_watched()) give_memory();
    }

    // What the block's threads did is visible to the caller from here on.
    void acquire_end() {
        if (__tsan_acquire != nullptr) __tsan_acquire(&end_);
    }

    void sync_block() {
        if (num_living_ < launch_.threads) fail_at_barrier();
        meet(block_barrier_, 0, launch_.threads, State::kAtBlockBarrier);
    }

    void sync_warp() { meet_warp(warp().barrier, State::kAtWarpBarrier); }

    const unsigned char* exchange(const void* mine, size_t bytes) {
        if (bytes > kMaxExchange) fail("an exchange within a warp of more than kMaxExchange bytes");
        Warp& own = warp();
        unsigned char* given = own.given[own.exchange.round % 2];
        unsigned char* place = given + current_->thread % kWarp * bytes;
        for (size_t i = 0; i < bytes; ++i) {  // by hand: sanitizers watch memcpy
            place[i] = static_cast<const unsigned char*>(mine)[i];
            asm volatile("");
        }
        meet_warp(own.exchange, State::kAtWarpExchange);
        return given;
    }

    void yield() {
        current_->state = State::kSpinning;
        spinning_.push_back(current_);
        switch_away();
    }

    [[noreturn]] void fail(const char* what) {
        std::fprintf(stderr, "emulator: %s: block %d of %d: %s\n", launch_.name, index_, launch_.blocks,
                     what);
        for (const ThreadFiber& fiber : fibers_)
            std::fprintf(stderr, "  thread %d %s%s\n", fiber.thread, name_of(fiber.state),
                         &fiber == current_ ? " (this one)" : "");
        std::abort();
    }

    ThreadFiber& current() { return *current_; }
    const Launch& shape() const { return launch_; }
    int index() const { return index_; }
    void* shared() const { return shared_; }

  private:
    void give_memory() {
        fibers_.clear();
        fiber_memory.give(std::exchange(memory_, nullptr), memory_bytes());
    }

    static void enter(void* argument) {
        auto* fiber = static_cast<ThreadFiber*>(argument);
        Block* block = current_block;
        block->kernel_();
        if (__tsan_release != nullptr) __tsan_release(&block->end_);
        fiber->state = State::kEnded;
        --block->num_living_;
        block->warp().has_ended = true;
        block->check_barriers(*fiber);
        fiber->fiber->leave_to(*block->scheduler_);
    }

    // Whoever waits at a barrier waits for this thread as well.
    void check_barriers(const ThreadFiber& ended) {
        if (block_barrier_.arrived > 0) fail("a thread ended while others wait at __syncthreads");
        const Warp& own = warps_[ended.thread / kWarp];
        if (own.barrier.arrived > 0) fail("a thread ended while others of its warp wait at __syncwarp");
        if (own.exchange.arrived > 0)
            fail("a thread ended while others of its warp wait at an op of the warp");
    }

    size_t memory_bytes() const { return kFiberBytes * launch_.threads; }

    Warp& warp() { return warps_[current_->thread / kWarp]; }

    void meet_warp(Barrier& barrier, State state) {
        if (warp().has_ended) fail_at_barrier();
        const int first = current_->thread / kWarp * kWarp;
        meet(barrier, first, std::min(first + kWarp, launch_.threads), state);
    }

    [[noreturn]] void fail_at_barrier() { fail("a barrier that some threads cannot reach: they have ended"); }

    // Of threads begin..end - 1, all of which must come; the last to do so opens the next round.
    void meet(Barrier& barrier, int begin, int end, State state) {
        const bool orders = state != State::kAtWarpExchange && __tsan_acquire != nullptr;
        void* word = barrier.word();
        if (orders) __tsan_release(word);
        if (++barrier.arrived == end - begin) {
            barrier.arrived = 0;
            ++barrier.round;
            release(begin, end, state);
        } else {
            current_->state = state;
            switch_away();
        }
        if (orders) __tsan_acquire(word);
    }

    void release(int begin, int end, State state) {
        for (int i = begin; i < end; ++i) {
            if (fibers_[i].state != state) continue;
            fibers_[i].state = State::kReady;
            ready_.push_back(&fibers_[i]);
        }
        moved();
    }

    void switch_away() { current_->fiber->switch_to(*scheduler_); }

    void run_one() {
        std::swap(ready_[random(ready_.size())], ready_.back());
        current_ = ready_.back();
        ready_.pop_back();
        current_->state = State::kReady;
        scheduler_->switch_to(*current_->fiber);
        if (current_->state == State::kEnded) moved();
    }

    // Everybody waits: those who spin look again, after other blocks had the core.
    void next_turn() {
        if (spinning_.empty()) {
            current_ = nullptr;
            fail("a deadlock: every thread waits for others of its block");
        }
        if (std::chrono::steady_clock::now() - last_moved_ > hang_) {
            current_ = nullptr;
            fail("a hang: what the threads spin for does not come");
        }
        ready_.swap(spinning_);
        sched_yield();
    }

    void moved() { last_moved_ = std::chrono::steady_clock::now(); }

    size_t random(size_t bound) {  // xorshift64*
        random_ ^= random_ >> 12, random_ ^= random_ << 25, random_ ^= random_ >> 27;
        return random_ * 0x2545F4914F6CDD1Du % bound;
    }

    const Launch& launch_;
    const std::function<void()>& kernel_;
    const int index_;
    uint64_t random_;
    unsigned char* memory_ = nullptr;
    void* shared_ = nullptr;
    Fiber* scheduler_ = nullptr;
    ThreadFiber* current_ = nullptr;
    std::vector<ThreadFiber> fibers_;
    std::vector<Warp> warps_;
    std::vector<ThreadFiber*> ready_, spinning_;
    Barrier block_barrier_;
    int num_living_ = 0;
    char end_ = 0;
    const std::chrono::seconds hang_ = hang_after();
    std::chrono::steady_clock::time_point last_moved_;
};

}  // namespace

void launch(const Launch& launch, const std::function<void()>& kernel) {
    std::atomic<int> next{0};
    std::vector<std::thread> workers;
    for (int i = 0; i < std::min(launch.resident, launch.blocks); ++i)
        workers.emplace_back([&] {
            // That a block begins when another has ended orders nothing between them, so all of them end
            // together.
            std::deque<Block> blocks;
            for (int index; (index = next.fetch_add(1, std::memory_order_relaxed)) < launch.blocks;)
                blocks.emplace_back(launch, kernel, index).run();
            for (Block& block : blocks) block.acquire_end();
        });
    for (std::thread& worker : workers) worker.join();
}

Index thread_index() {
    return {static_cast<unsigned>(current_block->current().thread), 0, 0};
}
Index block_index() {
    return {static_cast<unsigned>(current_block->index()), 0, 0};
}
Index block_size() {
    return {static_cast<unsigned>(current_block->shape().threads), 1, 1};
}
Index grid_size() {
    return {static_cast<unsigned>(current_block->shape().blocks), 1, 1};
}
void* shared_memory() {
    return current_block->shared();
}
void sync_block() {
    current_block->sync_block();
}
void sync_warp() {
    current_block->sync_warp();
}
void yield() {
    current_block->yield();
}
const unsigned char* exchange_in_warp(const void* mine, size_t bytes) {
    return current_block->exchange(mine, bytes);
}
AsyncCopies& async_copies() {
    return current_block->current().copies;
}
void fail(const char* what) {
    current_block->fail(what);
}

void AsyncCopies::add(AsyncCopy copy) {
    if (num_copies_ == kMaxCopies) fail("too many copies by cp.async at once");
    entries_[num_copies_++] = {copy, group_};
}

void AsyncCopies::commit() {
    ++group_;
}

void AsyncCopies::wait(int num_left, void (*perform)(const AsyncCopy&)) {
    int done = 0;
    while (done < num_copies_ && entries_[done].group < group_ - num_left) perform(entries_[done++].copy);
    std::copy(entries_ + done, entries_ + num_copies_, entries_);
    num_copies_ -= done;
}

}  // namespace fastserve::cuda_host
