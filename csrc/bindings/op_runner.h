// What all calls of _C.ops share: one team of threads, the ISA in use, scratch memory; one call at a time.
#pragma once

#include <pybind11/pybind11.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/threads.h"
#include "ops.h"

namespace fastserve {

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

class OpRunner {
  public:
    // Calls kernel(args, worker) of the ISA in use on every thread.
    template <class Args>
    void run(void (*OpTable::*kernel)(const Args&, const Worker&), const Args& args) {
        const pybind11::gil_scoped_release unlocked;
        const std::lock_guard lock(mutex_);
        run_locked(kernel, args);
    }

    // The same for kernels that want scratch: make(runner) completes the arguments under the lock.
    template <class Args, class Make>
    void run_with_scratch(void (*OpTable::*kernel)(const Args&, const Worker&), Make make) {
        const pybind11::gil_scoped_release unlocked;
        const std::lock_guard lock(mutex_);
        run_locked(kernel, static_cast<const Args&>(make(*this)));
    }

    // At least that many bytes, 64-byte aligned, valid until the next call.
    void* scratch(int64_t bytes) {
        if (bytes > scratch_bytes_) {
            const size_t size = (static_cast<size_t>(bytes) + 63) / 64 * 64;
            scratch_bytes_ = 0;
            scratch_.reset(std::aligned_alloc(64, size));
            if (!scratch_) throw std::bad_alloc();
            scratch_bytes_ = static_cast<int64_t>(size);
        }
        return scratch_.get();
    }

    int num_threads() { return team().size(); }

    void set_num_threads(int num_threads) {
        if (num_threads < 1 || num_threads > 1024)
            throw std::invalid_argument("num_threads must be in [1, 1024], got " +
                                        std::to_string(num_threads));
        const pybind11::gil_scoped_release unlocked;
        const std::lock_guard lock(mutex_);
        make_team(num_threads);
    }

    int locked_num_threads() {
        const pybind11::gil_scoped_release unlocked;
        const std::lock_guard lock(mutex_);
        return num_threads();
    }

    void use_isa(const std::string& name) {
        const OpTable* table = name.empty() ? &op_table() : &find_isa(name);
        const pybind11::gil_scoped_release unlocked;
        const std::lock_guard lock(mutex_);
        table_ = table;
    }

    const OpTable& table() { return table_ ? *table_ : op_table(); }

  private:
    template <class Args>
    void run_locked(void (*OpTable::*kernel)(const Args&, const Worker&), const Args& args) {
        const auto function = table().*kernel;
        team().run([&](const Worker& worker) { function(args, worker); });
    }

    Team& team() {
        // A forked child has the team's memory but not its threads: it gets a team of its own.
        if (team_ && owner_ != getpid()) static_cast<void>(team_.release());
        if (!team_) make_team(num_cores());
        return *team_;
    }

    void make_team(int num_threads) {
        if (team_ && owner_ != getpid()) static_cast<void>(team_.release());
        team_ = std::make_unique<Team>(std::vector<int>(static_cast<size_t>(num_threads), -1));
        owner_ = getpid();
    }

    static int num_cores() {
        cpu_set_t set;
        CPU_ZERO(&set);
        return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(CPU_COUNT(&set), 1) : 1;
    }

    std::mutex mutex_;
    std::unique_ptr<Team> team_;
    pid_t owner_ = -1;
    const OpTable* table_ = nullptr;
    std::unique_ptr<void, Free> scratch_{};
    int64_t scratch_bytes_ = 0;
};

}  // namespace fastserve
