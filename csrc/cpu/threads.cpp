// The team: flags on their own cache lines, a barrier of two flags per pair of threads, sleep when idle.
#include "cpu/threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <stdexcept>

namespace fastserve {

namespace {

// About 20 us of spinning: longer than the gap between two decode steps. Then some 200 us in which the core
// is offered to others all the time: a virtual core that was halted wakes after up to 400 us, so calls from
// Python that follow each other should not find the team asleep.
constexpr int kSpinsBeforeYielding = 1000;
constexpr int kYieldsBeforeSleep = 500;
// Spins at a barrier before the core is offered to others: threads may outnumber cores.
constexpr int kSpinsBeforeYield = 2000;

long futex(std::atomic<uint32_t>& word, int op, uint32_t value) {
    return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), op | FUTEX_PRIVATE_FLAG, value, nullptr,
                   nullptr, 0);
}

// A thread that is not pinned may wake on the core of the thread that woke it, which spins from then on: an
// op takes ten times as long (240 us instead of 21) until the scheduler sees it, tens of milliseconds later.
void leave_core(int core) {
    cpu_set_t allowed;
    if (sched_getcpu() != core || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    cpu_set_t others = allowed;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
    sched_setaffinity(0, sizeof allowed, &allowed);
}

template <class Done>
void spin_until(Done done) {
    for (int spins = 0; !done(); ++spins) {
        if (spins < kSpinsBeforeYield)
            spin_pause();
        else
            sched_yield();
    }
}

}  // namespace

bool pin_current_thread(int core) {
    if (core < 0) return false;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    return pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0;
}

void team_barrier(const Worker& worker) {
    if (worker.num_threads > 1) worker.team->barrier(worker.thread_idx);
}

Team::Team(std::vector<int> cores) : num_threads_(static_cast<int>(cores.size())), arrived_(cores.size()) {
    if (cores.empty()) throw std::invalid_argument("a team needs at least one thread");
    for (int i = 1; i < num_threads_; ++i)
        threads_.emplace_back([this, i, core = cores[i]] { loop(i, core); });
}

Team::~Team() {
    stop_.store(true);
    generation_.value.fetch_add(1);
    futex(generation_.value, FUTEX_WAKE, static_cast<uint32_t>(num_threads_));
    for (std::thread& thread : threads_) thread.join();
}

void Team::run(const std::function<void(const Worker&)>& task) {
    task_ = &task;
    if (num_threads_ > 1) {
        // seq_cst: either the sleeper sees the new generation, or we see the sleeper.
        generation_.value.fetch_add(1);
        if (sleepers_.load() > 0) {
            waker_core_.store(sched_getcpu());
            futex(generation_.value, FUTEX_WAKE, static_cast<uint32_t>(num_threads_));
        }
    }
    task(Worker{this, 0, num_threads_});
    if (num_threads_ > 1) barrier(0);
}

void Team::barrier(int thread_idx) {
    if (thread_idx == 0) {
        const uint32_t round = released_.value.load(std::memory_order_relaxed) + 1;
        for (int i = 1; i < num_threads_; ++i)
            spin_until([&] { return arrived_[i].value.load(std::memory_order_acquire) == round; });
        released_.value.store(round, std::memory_order_release);
        return;
    }
    const uint32_t round = arrived_[thread_idx].value.load(std::memory_order_relaxed) + 1;
    arrived_[thread_idx].value.store(round, std::memory_order_release);
    spin_until([&] { return released_.value.load(std::memory_order_acquire) == round; });
}

void Team::loop(int thread_idx, int core) {
    pin_current_thread(core);
    uint32_t seen = 0;
    for (;;) {
        int spins = 0;
        while (generation_.value.load(std::memory_order_acquire) == seen) {
            if (++spins < kSpinsBeforeYielding) {
                spin_pause();
            } else if (spins < kSpinsBeforeYielding + kYieldsBeforeSleep) {
                sched_yield();
            } else {
                sleepers_.fetch_add(1);
                futex(generation_.value, FUTEX_WAIT, seen);
                sleepers_.fetch_sub(1);
                if (core < 0) leave_core(waker_core_.load());
            }
        }
        ++seen;
        if (stop_.load()) return;
        (*task_)(Worker{this, thread_idx, num_threads_});
        barrier(thread_idx);
    }
}

}  // namespace fastserve
