// How the ranks of a group find and await each other inside a kernel.
//
// Every rank owns an *exchange buffer* that all ranks have mapped (CUDA IPC, or VMM handles passed by the
// device group); each op has an *area* of it: flags, then slots for data. Data is pushed: a rank stores into
// its peers' areas and reads its own alone, since a store to a peer costs the sender nothing and a load waits
// for the link twice. Ranks wait for no barrier of the whole group: block b of a rank talks to block b of the
// others only.
//
// A *flag* counts: it holds how many times its event has happened, and is never reset, so that nothing has to
// be cleared between calls. What a rank itself knows of the count lives in its own area (`calls`), in device
// memory: a CUDA graph replays kernels with the same arguments, and still every replay is a call of its own.
//
// A wait also looks at the group's epoch, a word that the host raises when a rank is lost: the kernel then
// ends, its output is undefined, and the host, who knows, makes the area anew.
#pragma once

#include "elements.cuh"

namespace fastserve::cuda {

constexpr int kMaxRanks = 8;     // GPUs of one host that see each other's memory
constexpr int kMaxBlocks = 320;  // per rank and op: two for each of the 148 SMs of a B200, and some
constexpr int kEpochEvery = 64;  // looks at a flag between two at the epoch, which lies in the host's memory
constexpr int kChunkColumns = 128;  // chunks end at multiples of this: the widest tile of a matmul

struct Peers {
    int rank, size;
    unsigned char* areas[kMaxRanks];  // the op's area of every rank, as this rank addresses it
    const uint32_t* epoch;            // mapped memory of the host
    uint32_t current_epoch;
};

// Chunk c of rows of d columns is columns [chunk_begin(c), chunk_begin(c + 1)): as equal as multiples of
// kChunkColumns can be. A column is summed from rank c + 1 on, around the ring to rank c, whatever the op's
// strategy and the number of rows.
__host__ __device__ __forceinline__ int chunk_begin(int c, int num_chunks, int d) {
    const int units = (d + kChunkColumns - 1) / kChunkColumns;
    const int begin = units * c / num_chunks * kChunkColumns;
    return begin < d ? begin : d;
}

__host__ __device__ __forceinline__ int chunk_of(int column, int num_chunks, int d) {
    const int units = (d + kChunkColumns - 1) / kChunkColumns;
    return ((column / kChunkColumns + 1) * num_chunks - 1) / units;
}

__device__ __forceinline__ int next_rank(const Peers& peers, int rank) {
    return rank + 1 == peers.size ? 0 : rank + 1;
}

// sum = the parts of `count` ranks in a column of chunk c, in fp32 and in the order in which columns are
// summed. load(rank) is 16 bytes of the rank's part.
template <typename T, class Load>
__device__ __forceinline__ void sum_parts(const Peers& peers, int c, int count, const Load& load,
                                          float (&sum)[kPerVector<T>]) {
    uint4 parts[kMaxRanks];  // all on their way before the first is needed
    int rank = c;
#pragma unroll
    for (int i = 0; i < kMaxRanks; ++i) {
        if (i >= count) break;
        rank = next_rank(peers, rank);
        parts[i] = load(rank);
    }
#pragma unroll
    for (int i = 0; i < kMaxRanks; ++i) {
        if (i >= count) break;
        float part[kPerVector<T>];
        unpack<T>(parts[i], part);
#pragma unroll
        for (int e = 0; e < kPerVector<T>; ++e) sum[e] = i == 0 ? part[e] : sum[e] + part[e];
    }
}

// Spins until the flag has reached `count`; false if the epoch is raised before.
__device__ __forceinline__ bool reached(const Peers& peers, const uint32_t* flag, uint32_t count) {
    for (int looks = 1;; ++looks) {
        if (static_cast<int32_t>(ld_acquire_sys(flag) - count) >= 0) return true;
        if (looks % kEpochEvery == 0 && ld_relaxed_sys(peers.epoch) != peers.current_epoch) return false;
        spin_pause();
    }
}

// Which of this block's waits were in vain; in shared memory. A thread writes its own word alone, and only
// before the block leaves.
struct Lost {
    uint32_t words[kMaxRanks];

    __device__ __forceinline__ void clear() {
        if (threadIdx.x < kMaxRanks) words[threadIdx.x] = 0;
    }
};

// By all threads of a block, of which the first kMaxRanks may have awaited a flag each: whether what they
// awaited came. If so, all threads see what was written before those flags. Another __syncthreads must lie
// between two calls.
__device__ __forceinline__ bool all_came(bool came, Lost& lost) {
    if (!came) lost.words[threadIdx.x] = 1;
    __syncthreads();
    uint32_t any = 0;
    for (int i = 0; i < kMaxRanks; ++i) any |= lost.words[i];
    return any == 0;
}

}  // namespace fastserve::cuda
