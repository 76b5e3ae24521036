// Writes into the memory of another rank of this host, the faster of two ways.
//
// Into a line that the peer's core holds, plain stores run at about 10 GB/s where both share an L3 and at 2
// where they do not; stores past the caches at 6 in either case, and the peer then reads from memory. The
// cores move under us (a virtual machine), so every few pushes one block tells which it is. Below 4 KB plain
// stores win everywhere.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastserve {

class Pusher {
  public:
    // `to` is aligned to 64. By any thread. What follows by release is seen after it.
    void push(void* to, const void* from, int64_t bytes);

    // For kernels that store what they have in registers: whether stores past the caches are the faster ones
    // now. Where probes() says so, they call measure() instead.
    bool streams() const { return streams_.load(std::memory_order_relaxed); }
    bool probes(int64_t bytes);
    void measure(void* to, const void* from, int64_t bytes);

  private:
    void copy(void* to, const void* from, int64_t bytes, bool streams);
    std::atomic<bool> streams_{false};  // stores past the caches are the faster ones now
    std::atomic<uint32_t> num_pushes_{0};
};

}  // namespace fastserve
