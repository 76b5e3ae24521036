#include "ring/watcher.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "ring/shared_region.h"

namespace fastserve {

namespace {

// glibc 2.36 has pidfd_open; older ones do not.
int open_pidfd(pid_t pid) {
    return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
}

bool left_in_good_order(const SharedRegion& region, pid_t pid) {
    for (int rank = 0; rank < region.num_ranks(); ++rank) {
        const RankSlot& slot = region.slot(rank);
        if (slot.pid.load() == pid) return slot.state.load() == static_cast<int32_t>(RankState::left);
    }
    return false;
}

}  // namespace

Watcher::Watcher(const std::vector<pid_t>& pids, std::shared_ptr<SharedRegion> region)
    : region_(std::move(region)) {
    for (const pid_t pid : pids) {
        const int fd = open_pidfd(pid);
        if (fd < 0 && errno != ESRCH) {
            const int error = errno;
            close_descriptors();
            throw std::system_error(error, std::generic_category(), "pidfd_open");
        }
        if (fd < 0) {
            if (!left_in_good_order(*region_, pid)) region_->raise_epoch(Loss::died, pid);
            continue;
        }
        pids_.push_back(pid);
        fds_.push_back(fd);
    }
    fds_.push_back(eventfd(0, EFD_CLOEXEC));
    if (fds_.back() < 0) {
        const int error = errno;
        fds_.pop_back();
        close_descriptors();
        throw std::system_error(error, std::generic_category(), "eventfd");
    }
    thread_ = std::thread([this] { watch(); });
}

Watcher::~Watcher() {
    close();
}

void Watcher::close() {
    if (!thread_.joinable()) return;
    const uint64_t one = 1;
    while (write(fds_.back(), &one, sizeof one) < 0 && errno == EINTR) {
    }
    thread_.join();
    close_descriptors();
}

void Watcher::close_descriptors() {
    for (const int fd : fds_) ::close(fd);
    fds_.clear();
}

void Watcher::watch() {
    std::vector<pollfd> polled;
    for (const int fd : fds_) polled.push_back({fd, POLLIN, 0});
    for (;;) {
        if (poll(polled.data(), polled.size(), -1) < 0) continue;  // EINTR
        if (polled.back().revents) return;
        for (size_t i = 0; i < pids_.size(); ++i) {
            if (!polled[i].revents) continue;
            polled[i].fd = -1;  // poll ignores it from now on
            if (!left_in_good_order(*region_, pids_[i])) region_->raise_epoch(Loss::died, pids_[i]);
        }
    }
}

}  // namespace fastserve
