// out = the sum of all ranks' x, by three strategies that give the same bits.
//
// one-shot: every rank pushes all of x to all ranks and sums everything itself. One hop, (R - 1) S bytes out
//   of a rank: what is small.
//
// two-shot: a rank pushes each chunk to the chunk's owner, who sums it and pushes the sum to all. Two hops,
//   2 (R - 1) / R S bytes.
//
// ring: a chunk travels from rank to rank, each adding its part, and once more around as a sum. 2 (R - 1)
//   hops and the same bytes as two-shot in fp32; 16-bit elements travel as fp32 on their first way, to keep
//   the bits. It needs slots for what is on its way alone and talks to its neighbours only.
//
// Vectors of 16 bytes are the unit: a rank's items are (row, vector), and block b has the b-th part of each
// chunk's items on every rank, so that it waits for the blocks b of the others and for no others.
//
// One- and two-shot use the slots of call n again in call n + 2. That is safe without a word of thanks: a
// rank begins call n + 2 after it has seen, in call n + 1, a flag of every other rank, and a rank raises
// flags of call n + 1 only when its kernel of call n has ended. The ring uses a slot again within a call, and
// awaits its neighbour's `taken`.
#pragma once

#include "peers.cuh"

namespace fastserve::cuda {

enum Phase { kScatter, kGather, kNumPhases };

struct AllReduceFlags {
    uint32_t arrived[kNumPhases][kMaxBlocks]
                    [kMaxRanks];  // [phase][block][from]: the last call whose data has come
    uint32_t calls[kMaxBlocks];   // this rank's own count, the same for every block
};

constexpr long long kAllReduceFlagBytes = (sizeof(AllReduceFlags) + 127) / 128 * 128;

struct RingFlags {
    uint32_t pushed[kMaxBlocks];  // segments that the rank before has put into this rank's slots
    uint32_t taken[kMaxBlocks];   // segments that the rank behind has read from its slots
    uint32_t steps[kMaxBlocks];   // this rank's own count of both
};

constexpr int kRingSlots = 2;          // one is read while the other is filled
constexpr int kSegmentVectors = 1024;  // 32 KB of fp32: a flag's 1-2 us are 5 % of a block's 1 GB/s
constexpr long long kSlotBytes = kSegmentVectors * 32;  // a vector of 16-bit elements, as fp32
constexpr long long kRingFlagBytes = (sizeof(RingFlags) + 127) / 128 * 128;

template <typename T>
struct AllReduceArgs {
    Peers peers;
    Rows<T> x, out;  // [rows, d]; out may be x
    int rows;
    long long half_bytes;  // of the slots of one call; two of them follow the flags
};

// Items (row, vector) of some columns: item i is vector `begin + i % width` of row `i / width`.
struct Items {
    int begin, width;
    int first, last;  // those of this block

    __device__ __forceinline__ int row(int i) const { return i / width; }
    __device__ __forceinline__ int vector(int i) const { return begin + i % width; }
};

// This block's part of the items of [begin, begin + width): equal numbers of items, or of rows.
template <bool kWholeRows>
__device__ __forceinline__ Items items_of_block(int begin, int width, int rows) {
    const long long block = blockIdx.x, blocks = gridDim.x;
    const long long total = kWholeRows ? rows : static_cast<long long>(rows) * width;
    const int unit = kWholeRows ? width : 1;
    return {begin, width, static_cast<int>(total * block / blocks) * unit,
            static_cast<int>(total * (block + 1) / blocks) * unit};
}

template <typename T, bool kWholeRows>
__device__ __forceinline__ Items items_of_chunk(const AllReduceArgs<T>& args, int c) {
    const int begin = chunk_begin(c, args.peers.size, args.x.d),
              end = chunk_begin(c + 1, args.peers.size, args.x.d);
    return items_of_block<kWholeRows>(begin / kPerVector<T>, num_vectors<T>(end - begin), args.rows);
}

// The widest chunk's vectors in all rows: what a slot must hold.
template <typename T>
__host__ __device__ __forceinline__ long long chunk_vectors(int rows, int d, int size) {
    const int units = (d + kChunkColumns - 1) / kChunkColumns;
    const int columns = (units + size - 1) / size * kChunkColumns;
    return static_cast<long long>(rows) * num_vectors<T>(columns < d ? columns : d);
}

// What half_bytes must be at least.
template <typename T>
__host__ __device__ __forceinline__ long long one_shot_bytes(int rows, int d, int size) {
    return 16LL * size * rows * num_vectors<T>(d);
}

template <typename T>
__host__ __device__ __forceinline__ long long two_shot_bytes(int rows, int d, int size) {
    return 16LL * kNumPhases * size * chunk_vectors<T>(rows, d, size);
}

// One call: its number, and where its data lies in the area of any rank.
struct Call {
    uint32_t number;
    long long offset;
};

template <typename T>
__device__ __forceinline__ AllReduceFlags* flags_of(const AllReduceArgs<T>& args, int rank) {
    return reinterpret_cast<AllReduceFlags*>(args.peers.areas[rank]);
}

template <typename T>
__device__ __forceinline__ Call begin_call(const AllReduceArgs<T>& args) {
    const uint32_t number = flags_of(args, args.peers.rank)->calls[blockIdx.x] + 1;
    return {number, kAllReduceFlagBytes + number % 2 * args.half_bytes};
}

// Block b counts for the blocks that this call has not, too: the next may have more. All threads are past
// begin_call.
template <typename T>
__device__ __forceinline__ void end_call(const AllReduceArgs<T>& args, const Call& call) {
    if (threadIdx.x != 0) return;
    for (unsigned block = blockIdx.x; block < kMaxBlocks; block += gridDim.x)
        flags_of(args, args.peers.rank)->calls[block] = call.number;
}

template <typename T>
__device__ __forceinline__ unsigned char* slot(const AllReduceArgs<T>& args, const Call& call, int rank,
                                               long long vector) {
    return args.peers.areas[rank] + call.offset + vector * 16;
}

// Tells all ranks that this block's data of a phase has been pushed, and awaits theirs.
template <typename T>
__device__ __forceinline__ bool meet(const AllReduceArgs<T>& args, const Call& call, Phase phase,
                                     Lost& lost) {
    const Peers& peers = args.peers;
    __syncthreads();
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < peers.size)
        st_release_sys(&flags_of(args, thread)->arrived[phase][blockIdx.x][peers.rank], call.number);
    const uint32_t* arrived = flags_of(args, peers.rank)->arrived[phase][blockIdx.x];
    return all_came(thread >= peers.size || reached(peers, arrived + thread, call.number), lost);
}

// The sum of vector `vector`, which is of chunk c, of the slots of all ranks, `stride` vectors apart.
template <typename T>
__device__ __forceinline__ void sum_slots(const AllReduceArgs<T>& args, const Call& call, long long vector,
                                          long long stride, int c, float (&sum)[kPerVector<T>]) {
    const auto part = [&](int rank) {
        return ld_global_16(slot(args, call, args.peers.rank, rank * stride + vector));
    };
    sum_parts<T>(args.peers, c, args.peers.size, part, sum);
}

template <typename T>
__device__ __forceinline__ uint4 sum_slots(const AllReduceArgs<T>& args, const Call& call, long long vector,
                                           long long stride, int c) {
    float sum[kPerVector<T>];
    sum_slots(args, call, vector, stride, c, sum);
    return pack<T>(sum);
}

// --- one-shot: slots [from][row][vector] ---

template <typename T>
__device__ __forceinline__ void push_to_all(const AllReduceArgs<T>& args, const Call& call,
                                            const Items& items) {
    const long long stride = static_cast<long long>(args.rows) * items.width;
    for (int i = items.first + threadIdx.x; i < items.last; i += blockDim.x) {
        const uint4 bits = args.x.load(items.row(i), items.vector(i));
        for (int n = 0, to = args.peers.rank; n < args.peers.size; ++n) {  // not all to the same peer at once
            to = next_rank(args.peers, to);
            st_global_16(slot(args, call, to, args.peers.rank * stride + i), bits);
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(512, 1) all_reduce_one_shot(const AllReduceArgs<T> args) {
    FS_DYN_SMEM(Lost, lost);
    lost->clear();
    const Call call = begin_call(args);
    const Items items = items_of_block<false>(0, num_vectors<T>(args.x.d), args.rows);
    push_to_all(args, call, items);
    if (!meet(args, call, kScatter, *lost)) return;
    const long long stride = static_cast<long long>(args.rows) * items.width;
    for (int i = items.first + threadIdx.x; i < items.last; i += blockDim.x) {
        const int vector = items.vector(i);
        const int c = chunk_of(vector * kPerVector<T>, args.peers.size, args.x.d);
        args.out.store(items.row(i), vector, sum_slots(args, call, i, stride, c));
    }
    end_call(args, call);
}

// --- two-shot: slots [phase][from, or owner][row][vector of the chunk] ---

template <typename T>
__device__ __forceinline__ long long two_shot_stride(const AllReduceArgs<T>& args) {
    return chunk_vectors<T>(args.rows, args.x.d, args.peers.size);
}

template <typename T>
__device__ __forceinline__ long long gather_slot(const AllReduceArgs<T>& args, int owner) {
    return (args.peers.size + owner) * two_shot_stride(args);
}

// On return every rank's gather slots hold the sums of this block's items.
template <typename T, bool kWholeRows>
__device__ __forceinline__ bool two_shot(const AllReduceArgs<T>& args, const Call& call, Lost& lost) {
    const Peers& peers = args.peers;
    const long long stride = two_shot_stride(args);
    for (int n = 0, owner = peers.rank; n < peers.size; ++n) {
        owner = next_rank(peers, owner);
        const Items items = items_of_chunk<T, kWholeRows>(args, owner);
        for (int i = items.first + threadIdx.x; i < items.last; i += blockDim.x)
            st_global_16(slot(args, call, owner, peers.rank * stride + i),
                         args.x.load(items.row(i), items.vector(i)));
    }
    if (!meet(args, call, kScatter, lost)) return false;
    const Items own = items_of_chunk<T, kWholeRows>(args, peers.rank);
    for (int i = own.first + threadIdx.x; i < own.last; i += blockDim.x) {
        const uint4 sum = sum_slots(args, call, i, stride, peers.rank);
        for (int n = 0, to = peers.rank; n < peers.size; ++n) {
            to = next_rank(peers, to);
            st_global_16(slot(args, call, to, gather_slot(args, peers.rank) + i), sum);
        }
    }
    return meet(args, call, kGather, lost);
}

template <typename T>
__global__ void __launch_bounds__(512, 1) all_reduce_two_shot(const AllReduceArgs<T> args) {
    FS_DYN_SMEM(Lost, lost);
    lost->clear();
    const Call call = begin_call(args);
    if (!two_shot<T, false>(args, call, *lost)) return;
    for (int owner = 0; owner < args.peers.size; ++owner) {
        const Items items = items_of_chunk<T, false>(args, owner);
        for (int i = items.first + threadIdx.x; i < items.last; i += blockDim.x)
            args.out.store(items.row(i), items.vector(i),
                           ld_global_16(slot(args, call, args.peers.rank, gather_slot(args, owner) + i)));
    }
    end_call(args, call);
}

// --- ring ---

template <typename T>
__device__ __forceinline__ RingFlags* ring_flags(const AllReduceArgs<T>& args, int rank) {
    return reinterpret_cast<RingFlags*>(args.peers.areas[rank]);
}

template <typename T>
__device__ __forceinline__ unsigned char* ring_slot(const AllReduceArgs<T>& args, int rank, uint32_t push) {
    const long long index = static_cast<long long>(blockIdx.x) * kRingSlots + push % kRingSlots;
    return args.peers.areas[rank] + kRingFlagBytes + index * kSlotBytes;
}

template <typename T>
__device__ __forceinline__ void load_partial(const unsigned char* slot, int i,
                                             float (&values)[kPerVector<T>]) {
    const unsigned char* from = slot + static_cast<long long>(i) * (4 * kPerVector<T>);
#pragma unroll
    for (int e = 0; e < kPerVector<T>; e += 4) {
        const uint4 bits = ld_global_16(from + e * 4);
        values[e] = __uint_as_float(bits.x), values[e + 1] = __uint_as_float(bits.y);
        values[e + 2] = __uint_as_float(bits.z), values[e + 3] = __uint_as_float(bits.w);
    }
}

template <typename T>
__device__ __forceinline__ void store_partial(unsigned char* slot, int i,
                                              const float (&values)[kPerVector<T>]) {
    unsigned char* to = slot + static_cast<long long>(i) * (4 * kPerVector<T>);
#pragma unroll
    for (int e = 0; e < kPerVector<T>; e += 4)
        st_global_16(to + e * 4, make_uint4(__float_as_uint(values[e]), __float_as_uint(values[e + 1]),
                                            __float_as_uint(values[e + 2]), __float_as_uint(values[e + 3])));
}

// One segment of one chunk at one step: takes what came (from: null at the chunk's first rank), adds x or,
// once the chunk is summed, keeps it, and passes it on (to: null at its last rank).
template <typename T>
__device__ __forceinline__ void ring_segment(const AllReduceArgs<T>& args, const Items& items, int first,
                                             int last, int step, const unsigned char* from,
                                             unsigned char* to) {
    const int final_step = args.peers.size - 1;
    for (int i = first + threadIdx.x; i < last; i += blockDim.x) {
        const int row = items.row(i), vector = items.vector(i), place = i - first;
        if (step > final_step) {
            const uint4 bits = ld_global_16(from + place * 16);
            args.out.store(row, vector, bits);
            if (to != nullptr) st_global_16(to + place * 16, bits);
            continue;
        }
        float own[kPerVector<T>], sum[kPerVector<T>];
        unpack<T>(args.x.load(row, vector), own);
        if (step > 0) {
            load_partial<T>(from, place, sum);
#pragma unroll
            for (int e = 0; e < kPerVector<T>; ++e) own[e] = sum[e] + own[e];
        }
        if (step < final_step) {
            store_partial<T>(to, place, own);
        } else {
            const uint4 bits = pack<T>(own);
            args.out.store(row, vector, bits);
            st_global_16(to + place * 16, bits);
        }
    }
}

// At step s a rank holds chunk rank - 1 - s (mod R): it is the chunk's first rank at step 0, its owner, who
// completes the sum, at step R - 1, and at step 2 R - 2 the last that gets the sum. A segment goes all the
// way before the next sets out, so two slots are enough; while a block waits, others use the link.
template <typename T>
__global__ void __launch_bounds__(512, 1) all_reduce_ring(const AllReduceArgs<T> args) {
    FS_DYN_SMEM(Lost, lost);
    lost->clear();
    const Peers& peers = args.peers;
    const int size = peers.size, after = next_rank(peers, peers.rank),
              before = peers.rank == 0 ? size - 1 : peers.rank - 1;
    RingFlags* flags = ring_flags(args, peers.rank);
    const int block = static_cast<int>(blockIdx.x), last_step = 2 * size - 2;
    uint32_t pushed = flags->steps[block], received = pushed;

    int longest = 0;
    for (int c = 0; c < size; ++c) {
        const Items items = items_of_chunk<T, false>(args, c);
        longest = max(longest, items.last - items.first);
    }
    for (int begin = 0; begin < longest; begin += kSegmentVectors) {
        for (int step = 0, c = before; step <= last_step; ++step, c = c == 0 ? size - 1 : c - 1) {
            const Items items = items_of_chunk<T, false>(args, c);
            const int first = items.first + begin, last = min(items.last, first + kSegmentVectors);
            bool came = true;
            if (threadIdx.x == 0 && step > 0) came = reached(peers, &flags->pushed[block], received + 1);
            if (threadIdx.x == 1 && step < last_step)
                came = reached(peers, &flags->taken[block], pushed + 1 - kRingSlots);
            if (!all_came(came, *lost)) return;
            ring_segment(args, items, first, last, step,
                         step > 0 ? ring_slot(args, peers.rank, received) : nullptr,
                         step < last_step ? ring_slot(args, after, pushed) : nullptr);
            __syncthreads();
            if (step > 0) ++received;
            if (step < last_step) ++pushed;
            if (threadIdx.x == 0 && step > 0)
                st_release_sys(&ring_flags(args, before)->taken[block], received);
            if (threadIdx.x == 0 && step < last_step)
                st_release_sys(&ring_flags(args, after)->pushed[block], pushed);
        }
    }
    if (threadIdx.x == 0) flags->steps[block] = pushed;
}

}  // namespace fastserve::cuda
