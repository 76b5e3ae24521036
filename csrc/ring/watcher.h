// Notices that a process of the group has ended, and raises the epoch: by pidfds, so no process id can be
// mistaken.
#pragma once

#include <sys/types.h>

#include <memory>
#include <thread>
#include <vector>

namespace fastserve {

class SharedRegion;

// Watches from construction to close(). A process whose rank left the group in good order ends unnoticed.
class Watcher {
  public:
    // Throws std::system_error where the kernel has no pidfds. A process that is gone already counts as
    // ended.
    Watcher(const std::vector<pid_t>& pids, std::shared_ptr<SharedRegion> region);
    ~Watcher();
    void close();  // idempotent
    Watcher(const Watcher&) = delete;
    Watcher& operator=(const Watcher&) = delete;

  private:
    void watch();
    void close_descriptors();

    std::shared_ptr<SharedRegion> region_;
    std::vector<pid_t> pids_;
    std::vector<int> fds_;  // a pidfd per process, then the eventfd that ends the thread
    std::thread thread_;
};

}  // namespace fastserve
