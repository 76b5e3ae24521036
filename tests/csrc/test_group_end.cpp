// A group's end: who is lost is noticed, who leaves in good order harms nobody, and nothing stays behind.
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

#include "check.h"
#include "ranks.h"
#include "ring/watcher.h"

using namespace fastserve;

namespace {

constexpr size_t kHalfBytes = 64 * 1024;
constexpr auto kNoticed = std::chrono::seconds(1);

int open_descriptors() {
    int count = 0;
    DIR* directory = opendir("/proc/self/fd");
    while (readdir(directory)) ++count;
    closedir(directory);
    return count;
}

void all_reduce(Exchange& exchange, Team& team) {
    std::vector<float> x(4 * 576, 1.0f);
    const AllReduceArgs args{x.data(), 576, 4, 576, &exchange};
    team.run([&](const Worker& worker) { op_table().all_reduce(args, worker); });
}

#if !defined(__SANITIZE_THREAD__)

// Written by ranks, read by the test: lies in the region's extra bytes.
std::atomic<uint32_t>& counter(const SharedRegion& region) {
    return *static_cast<std::atomic<uint32_t>*>(region.extra());
}

void test_killed_rank_ends_the_waits_of_the_others() {
    for (const int algorithm : {0, 1, 2}) {
        const auto region = SharedRegion::create(3, kHalfBytes, 64);
        std::vector<pid_t> pids;
        for (int rank = 0; rank < 3; ++rank)
            pids.push_back(start_rank(region, rank, [&](Exchange& exchange) {
                exchange.force_algorithm(algorithm);
                Team team(unpinned(2));
                while (!exchange.gave_up()) {
                    all_reduce(exchange, team);
                    counter(exchange.region()).fetch_add(1);
                }
                CHECK(exchange.failed());
            }));
        Watcher watcher(pids, region);
        while (counter(*region).load() < 100) sched_yield();
        const auto killed = std::chrono::steady_clock::now();
        kill(pids[1], SIGKILL);
        for (int rank = 0; rank < 3; ++rank) {
            int status = 0;
            CHECK(waitpid(pids[static_cast<size_t>(rank)], &status, 0) > 0);
            CHECK(rank == 1 ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
        CHECK(std::chrono::steady_clock::now() - killed < kNoticed);
        CHECK(region->failed());
        CHECK(region->loss_text() == "rank 1 of 3 (pid " + std::to_string(pids[1]) + ") died");
    }
}

void test_process_that_was_gone_before_is_noticed() {
    const auto region = SharedRegion::create(2, kHalfBytes, 0);
    const pid_t pid = fork();
    if (pid == 0) _exit(0);
    waitpid(pid, nullptr, 0);
    Watcher watcher({pid}, region);
    CHECK(region->failed());
}

void test_watcher_lets_a_rank_leave_in_good_order() {
    const auto region = SharedRegion::create(2, kHalfBytes, 0);
    const pid_t pid = start_rank(region, 0, [](Exchange&) {});
    {
        Watcher watcher({pid}, region);
        waitpid(pid, nullptr, 0);
    }
    CHECK(!region->failed());
}

void test_stopped_rank_is_waited_for_asleep_and_woken() {
    const auto region = SharedRegion::create(2, kHalfBytes, 0);
    int go[2];
    CHECK(pipe(go) == 0);
    const pid_t waiter = start_rank(region, 0, [](Exchange& exchange) {
        Team team(unpinned(1));
        all_reduce(exchange, team);
        CHECK(!exchange.gave_up());
    });
    const pid_t late = start_rank(region, 1, [&](Exchange& exchange) {
        char byte;
        CHECK(read(go[0], &byte, 1) == 1);
        Team team(unpinned(1));
        all_reduce(exchange, team);
    });
    while (region->slot(1).sleepers.load() == 0) sched_yield();
    CHECK(write(go[1], "g", 1) == 1);
    for (const pid_t pid : {waiter, late}) {
        int status = 0;
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    close(go[0]);
    close(go[1]);
}

#endif

void test_rank_that_left_fails_only_those_who_need_it() {
    const auto region = SharedRegion::create(2, kHalfBytes, 0);
    auto leaver = make_exchange(region, 1);
    std::thread other([&] {
        const auto exchange = make_exchange(region, 0);
        Team team(unpinned(1));
        all_reduce(*exchange, team);
        CHECK(!exchange->failed() && !exchange->gave_up());
        all_reduce(*exchange, team);
        CHECK(exchange->failed() && exchange->gave_up());
    });
    {
        Team team(unpinned(1));
        all_reduce(*leaver, team);
    }
    leaver.reset();
    other.join();
    CHECK(region->loss_text().find("left the group") != std::string::npos);
}

void test_raised_epoch_ends_a_wait() {
    const auto region = SharedRegion::create(2, kHalfBytes, 0);
    const auto absent = make_exchange(region, 1);
    std::thread waiter([&] {
        const auto exchange = make_exchange(region, 0);
        Team team(unpinned(2));
        all_reduce(*exchange, team);
        CHECK(exchange->gave_up());
    });
    absent->raise_epoch();
    waiter.join();
    CHECK(region->failed());
}

void test_matrix_whose_row_does_not_fit_is_given_up() {
    const auto region = SharedRegion::create(2, 4096, 0);
    const auto exchange = make_exchange(region, 0);
    CHECK(exchange->rows_per_slice(1024) == 1 && exchange->rows_per_slice(1025) == 0);
    std::vector<float> x(1025);
    const AllReduceArgs args{x.data(), 1025, 1, 1025, exchange.get()};
    op_table().all_reduce(args, Worker{nullptr, 0, 1});
    CHECK(exchange->gave_up());
    CHECK(region->loss_text().find("more than the group's exchange buffers hold") != std::string::npos);
}

void test_rank_is_taken_once() {
    const auto region = SharedRegion::create(2, kHalfBytes, 0);
    const auto first = make_exchange(region, 0);
    CHECK_THROWS(make_exchange(region, 0), std::invalid_argument);
    CHECK_THROWS(make_exchange(region, 2), std::invalid_argument);
    CHECK_THROWS(make_exchange(region, -1), std::invalid_argument);
}

// A sealed memfd with the region's bytes, one of them changed, or cut.
bool attaches(const SharedRegion& region, size_t size, size_t changed, bool sealed) {
    std::vector<char> bytes(size);
    CHECK(pread(region.fd(), bytes.data(), size, 0) == static_cast<ssize_t>(size));
    if (changed < size) bytes[changed] = static_cast<char>(bytes[changed] ^ 0x41);
    const int fd = memfd_create("damaged", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(write(fd, bytes.data(), size) == static_cast<ssize_t>(size));
    if (sealed) fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    bool attached = true;
    try {
        SharedRegion::attach(fd);
    } catch (const std::runtime_error&) {
        attached = false;
    }
    close(fd);
    return attached;
}

void test_attach_refuses_what_is_not_a_region() {
    const auto region = SharedRegion::create(2, 4096, 4096);
    const size_t size = static_cast<size_t>(lseek(region->fd(), 0, SEEK_END));
    CHECK(attaches(*region, size, size, true));
    CHECK(!attaches(*region, size, size, false));
    CHECK(!attaches(*region, size - 4096, size, true));
    CHECK(!attaches(*region, 8, size, true));
    // Magic, layout, number of ranks, three sizes: every byte counts.
    for (size_t i = 0; i < 40; ++i) CHECK(!attaches(*region, size, i, true));
    CHECK_THROWS(SharedRegion::attach(-1), std::runtime_error);
    CHECK_THROWS(SharedRegion::create(0, 4096, 0), std::invalid_argument);
    CHECK_THROWS(SharedRegion::create(kMaxRanks + 1, 4096, 0), std::invalid_argument);
    CHECK_THROWS(SharedRegion::create(2, 0, 0), std::invalid_argument);
}

}  // namespace

int main() {
    const int before = open_descriptors();
#if !defined(__SANITIZE_THREAD__)
    test_killed_rank_ends_the_waits_of_the_others();
    test_process_that_was_gone_before_is_noticed();
    test_watcher_lets_a_rank_leave_in_good_order();
    test_stopped_rank_is_waited_for_asleep_and_woken();
#endif
    test_rank_that_left_fails_only_those_who_need_it();
    test_raised_epoch_ends_a_wait();
    test_matrix_whose_row_does_not_fit_is_given_up();
    test_rank_is_taken_once();
    test_attach_refuses_what_is_not_a_region();
    CHECK(open_descriptors() == before);
    CHECK(waitpid(-1, nullptr, WNOHANG) == -1);
    return failures() == 0 ? 0 : 1;
}
