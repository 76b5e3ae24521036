// Runs a body once per rank of a group: in processes, as in use, or in threads of one, for ThreadSanitizer. A
// region for each host: ranks with the same one share memory.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/threads.h"
#include "ring/exchange.h"
#include "ring/shared_region.h"

using RankBody = std::function<void(fastserve::Exchange&)>;
using Regions = std::vector<std::shared_ptr<fastserve::SharedRegion>>;  // of each rank

// A team of as many unpinned threads; ranks may have different numbers.
inline std::vector<int> unpinned(int num_threads) {
    return std::vector<int>(static_cast<size_t>(num_threads), -1);
}

#if defined(__SANITIZE_THREAD__)

inline void run_ranks(const Regions& regions, const RankBody& body) {
    std::vector<std::thread> ranks;
    for (size_t rank = 0; rank < regions.size(); ++rank)
        ranks.emplace_back(
            [&, rank] { body(*fastserve::make_exchange(regions[rank], static_cast<int>(rank))); });
    for (std::thread& rank : ranks) rank.join();
}

#else

// The child's pid. It maps the region anew, as a rank that was started by exec does.
inline pid_t start_rank(const std::shared_ptr<fastserve::SharedRegion>& region, int rank,
                        const RankBody& body) {
    std::fflush(stdout);
    const pid_t pid = fork();
    if (pid != 0) return pid;
    failures() = 0;
    {
        const auto exchange = fastserve::make_exchange(fastserve::SharedRegion::attach(region->fd()), rank);
        body(*exchange);
    }
    std::fflush(stdout);
    _exit(failures() == 0 ? 0 : 1);
}

inline void run_ranks(const Regions& regions, const RankBody& body) {
    std::vector<pid_t> pids;
    for (size_t rank = 0; rank < regions.size(); ++rank)
        pids.push_back(start_rank(regions[rank], static_cast<int>(rank), body));
    for (const pid_t pid : pids) {
        int status = 0;
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

#endif

inline void run_ranks(const std::shared_ptr<fastserve::SharedRegion>& region, const RankBody& body) {
    run_ranks(Regions(static_cast<size_t>(region->num_ranks()), region), body);
}
