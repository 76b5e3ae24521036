// The memory that the ranks of a group share: a memfd, so there is no name to find, to guess or to leave
// behind.
//
//   header   magic, layout, sizes; the epoch; a slot per rank        (one page or more)
//   flags    [num_ranks][kFlagsPerRank], each on cache lines of its own
//   buffers  [num_ranks][2 halves] { work [half_bytes]; inbox [num_ranks][slot_bytes] }: csrc/ring/exchange.h
//   extra    whatever the creator puts there (mailboxes)
//
// The layout is fixed and holds no pointer. attach() checks everything that it reads against the size of the
// file, and the file is sealed against shrinking, so no peer can turn a later access into a fault.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace fastserve {

constexpr int32_t kMaxRanks = 64;
constexpr int32_t kMaxSegments = 128;          // of one collective, over all chunks
constexpr int32_t kGatherFlag = kMaxSegments;  // all_gather and barrier
constexpr int32_t kFlagsPerRank = kMaxSegments + 1;
constexpr size_t kCacheLines = 128;  // x86 prefetches lines in pairs

struct alignas(kCacheLines) Flag {
    std::atomic<uint64_t> value;
};

// Why the epoch was raised.
enum class Loss : int32_t { none, died, left, closed, interrupted, too_large, unreachable, garbled };
constexpr uint32_t kLastLoss = static_cast<uint32_t>(Loss::garbled);

enum class RankState : int32_t { absent, present, left };

struct alignas(kCacheLines) RankSlot {
    std::atomic<int32_t> pid;        // of a rank on another host: -(its number in the whole group + 1)
    std::atomic<int32_t> state;      // RankState
    std::atomic<uint32_t> sleepers;  // waits of other ranks that sleep on a flag of this one
    // Advanced by every op and by every wait that has become a sleep: one that stands still is a rank that
    // hangs. On a line of its own, for waits of other ranks read the one above.
    alignas(kCacheLines) std::atomic<uint64_t> beats;
    std::atomic<int64_t> step_ns;     // spent in steps ...
    std::atomic<int64_t> waiting_ns;  // ... and of that, waiting for other ranks
};

class SharedRegion {
  public:
    // half_bytes: what one collective can hold per rank. team_threads: of the largest team of a rank, about.
    // Throws std::invalid_argument, std::system_error.
    static std::shared_ptr<SharedRegion> create(int num_ranks, size_t half_bytes, size_t extra_bytes,
                                                int team_threads = 1);
    // Maps the region behind a descriptor from create(), which stays the caller's. Throws std::runtime_error
    // that names what is wrong with the descriptor.
    static std::shared_ptr<SharedRegion> attach(int fd);
    ~SharedRegion();
    SharedRegion(const SharedRegion&) = delete;
    SharedRegion& operator=(const SharedRegion&) = delete;

    int fd() const { return fd_; }
    int num_ranks() const { return num_ranks_; }
    size_t half_bytes() const { return half_bytes_; }
    size_t extra_bytes() const { return extra_bytes_; }
    void* extra() const { return memory_ + extra_offset_; }
    size_t slot_bytes() const { return slot_bytes_; }
    size_t buffer_bytes() const;  // of a rank
    int team_threads() const { return team_threads_; }
    uint8_t* work(int rank, int half) const;
    uint8_t* inbox(int owner, int half, int slot) const;
    Flag& flag(int rank, int32_t idx) const;
    RankSlot& slot(int rank) const;

    // 0 while the group is whole. For who waits outside of this code: a GPU's kernels.
    const std::atomic<uint32_t>& epoch() const;
    // True once the epoch was raised.
    bool failed() const;
    // Ends every wait in the region. The first call says why; `pid` is whose end was the reason, 0: nobody's.
    void raise_epoch(Loss loss = Loss::closed, pid_t pid = 0);
    Loss loss() const;
    pid_t lost_pid() const;  // whose end was the reason; 0: nobody's
    int lost_rank() const;   // -1: nobody's, or not of this region
    // What is known about the end, in words for the user.
    std::string loss_text() const;

  private:
    struct Header;
    SharedRegion(int fd, size_t half_bytes, size_t extra_bytes, int num_ranks, int team_threads);

    int fd_;
    int num_ranks_;
    int team_threads_;
    size_t half_bytes_, slot_bytes_, extra_bytes_;
    size_t buffers_offset_, extra_offset_, total_bytes_;
    uint8_t* memory_ = nullptr;
    Header* header_ = nullptr;
};

}  // namespace fastserve
