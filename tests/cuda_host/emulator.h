// Runs CUDA kernels, compiled for the host, as a GPU would run them, and sees what goes wrong.
//
// A block is an OS thread, a CUDA thread is a fiber on it, so several devices are just several launches at
// once. Fibers of a block run in an order drawn from a seed and are switched only where CUDA lets them meet
// or wait: __syncthreads,
// __syncwarp, shuffles and other ops of a warp, a spinning wait. What a kernel may not rely on is made to
// fail:
// - shared memory is full of NaN when a block begins;
// - a copy by cp.async happens at the wait that awaits it, no sooner, and its place holds NaN until then;
// - a launch has only so many resident blocks: one more begins when one has ended;
// - a barrier that a thread of the block, or of the warp, can no longer reach, and a launch in which nothing
// moves any more,
//   end the process with a message that says where everybody was.
//
// Under ThreadSanitizer every fiber is a thread of its own, ordered with others by nothing but barriers
// (which order what lies before them with what lies behind), acquire and release.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace fastserve::cuda_host {

constexpr int kWarp = 32;

struct Index {
    unsigned x, y, z;
};

struct Launch {
    int blocks;
    int threads;
    size_t shared_bytes;
    int resident;   // blocks that run at the same time
    uint64_t seed;  // of the order of fibers
    const char* name = "kernel";
};

// Returns when all blocks have ended. What the caller did before is visible to the kernel, and what the
// kernel did to the caller, as with launches on one stream.
void launch(const Launch& launch, const std::function<void()>& kernel);

// The rest is what kernels call, through ptx_host.h.

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();
void* shared_memory();

void sync_block();
void sync_warp();
// Other fibers of the block, then other blocks, have a turn.
void yield();

// All lanes of a warp give `bytes` (at most kMaxExchange) and get those of all lanes, one after another. They
// stay until the lane's next but one exchange. Orders no memory.
constexpr size_t kMaxExchange = 48;
const unsigned char* exchange_in_warp(const void* mine, size_t bytes);

// Copies of the calling thread that wait for their cp.async wait.
struct AsyncCopy {
    void* to;
    const void* from;
};
class AsyncCopies {
  public:
    struct Entry {
        AsyncCopy copy;
        int group;
    };
    static constexpr int kMaxCopies = 512;

    explicit AsyncCopies(Entry* entries = nullptr) : entries_(entries) {}  // kMaxCopies of them
    void add(AsyncCopy copy);
    void commit();
    // Gives the copies of all groups but the `num_left` youngest to `perform`, in order.
    void wait(int num_left, void (*perform)(const AsyncCopy&));

  private:
    Entry* entries_;
    int num_copies_ = 0;
    int group_ = 0;
};
AsyncCopies& async_copies();

// Says what is wrong with the kernel, and where, and ends the process.
[[noreturn]] void fail(const char* what);

}  // namespace fastserve::cuda_host
