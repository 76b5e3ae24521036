// matmul_all_reduce by the ring: chunk c is a range of columns of tiles, and its sum goes around from rank
// c + 1 to rank c, who pushes it to all.
//
// What goes around is fp32: the sum of rounded parts so far, which all_reduce does not round either. Block b
// of every rank computes the same tiles of a chunk, so it talks to the blocks b of its neighbours alone.
// Tiles are taken in rounds: a round is one tile of each chunk, in the order in which the ring wants them:
// first that of the chunk which this rank begins, last that of the chunk which it owns. What comes from the
// rank before was sent a tile ago: a whole main loop hides its way. The sums of a round are collected a round
// later, for the same reason.
//
// A block has two slots at its neighbour for tiles on their way, and awaits that one was `taken` before it
// fills it again. Sums have two slots per owner, for even and odd rounds: an owner sends the sum of round
// n + 2 after every rank has added its part to it, and a rank does that after it has collected round n.
#pragma once

#include "matmul_all_reduce.cuh"

namespace fastserve::cuda {

constexpr int kTileSlots = 2;
// Where slots lie does not depend on the tile: a neighbour may still collect the sums of a call with another.
constexpr long long kPartialSlotBytes = 4 * 128 * 128;
constexpr long long kSumSlotBytes = kPartialSlotBytes / 2;

struct MatmulRingFlags {
    uint32_t pushed[kMaxBlocks];  // partial sums of tiles that the rank before has put into this rank's slots
    uint32_t taken[kMaxBlocks];   // those of this rank's that the rank behind has added to its own
    uint32_t finished[kMaxBlocks][kMaxRanks];  // the last round of which an owner's sum has come
    uint32_t pushes[kMaxBlocks], receipts[kMaxBlocks], rounds[kMaxBlocks];  // this rank's own counts
};

constexpr long long kMatmulRingFlagBytes = (sizeof(MatmulRingFlags) + 127) / 128 * 128;

// Of the area, for one block.
__host__ __device__ __forceinline__ long long matmul_ring_block_bytes(int size) {
    return kTileSlots * kPartialSlotBytes + 2 * size * kSumSlotBytes;
}

__device__ __forceinline__ uint4 bits_of(const float (&values)[4]) {
    return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                      __float_as_uint(values[3]));
}

__device__ __forceinline__ void add_bits(float (&values)[4], uint4 bits) {
    values[0] += __uint_as_float(bits.x), values[1] += __uint_as_float(bits.y);
    values[2] += __uint_as_float(bits.z), values[3] += __uint_as_float(bits.w);
}

// Where fragment (i, j) of a partial sum lies in its slot.
template <class Tile>
__device__ __forceinline__ int fragment_offset(int i, int j) {
    return 16 * ((i * Tile::kFragmentsN + j) * Tile::kThreads + static_cast<int>(threadIdx.x));
}

template <class Tile>
__device__ __forceinline__ void round_part(Accumulators<Tile>& sums) {
#pragma unroll
    for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kFragmentsN; j += 2) {
            float pair[8];
            unpack<typename Tile::T>(rounded_pair<Tile>(sums, i, j), pair);
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[i][j][e] = pair[e], sums[i][j + 1][e] = pair[4 + e];
        }
}

// A tile of one chunk: chunks are whole columns of tiles.
template <class Tile>
struct Chunk {
    int first_column, num_columns, num_rows;  // in tiles

    __device__ Chunk(const Operands<typename Tile::T>& operands, int c, int size)
        : first_column(chunk_begin(c, size, operands.n) / Tile::kN),
          num_columns((chunk_begin(c + 1, size, operands.n) + Tile::kN - 1) / Tile::kN - first_column),
          num_rows((operands.m + Tile::kM - 1) / Tile::kM) {
        static_assert(kChunkColumns % Tile::kN == 0 && Tile::kBytes <= kSumSlotBytes);
    }
    __device__ __forceinline__ int num_tiles() const { return num_columns * num_rows; }
    __device__ __forceinline__ int row(int tile) const { return tile % num_rows * Tile::kM; }
    __device__ __forceinline__ int column(int tile) const {
        return (first_column + tile / num_rows) * Tile::kN;
    }
};

template <class Tile>
struct Ring {
    using T = typename Tile::T;
    const MatmulAllReduceArgs<T>& args;
    const StagedSums<Tile> staged;
    const int block, size, rank, after, before;
    uint32_t pushes, receipts, rounds;

    __device__ Ring(const MatmulAllReduceArgs<T>& arguments, float* shared_sums)
        : args(arguments),
          staged{shared_sums},
          block(static_cast<int>(blockIdx.x)),
          size(args.peers.size),
          rank(args.peers.rank),
          after(next_rank(args.peers, rank)),
          before(rank == 0 ? size - 1 : rank - 1),
          pushes(flags(rank)->pushes[block]),
          receipts(flags(rank)->receipts[block]),
          rounds(flags(rank)->rounds[block]) {}

    __device__ __forceinline__ MatmulRingFlags* flags(int of) const {
        return reinterpret_cast<MatmulRingFlags*>(args.peers.areas[of]);
    }
    __device__ __forceinline__ unsigned char* slots(int of) const {
        return args.peers.areas[of] + kMatmulRingFlagBytes + block * matmul_ring_block_bytes(size);
    }
    __device__ __forceinline__ unsigned char* partial_slot(int of, uint32_t push) const {
        return slots(of) + push % kTileSlots * kPartialSlotBytes;
    }
    __device__ __forceinline__ unsigned char* sum_slot(int of, int owner, uint32_t round) const {
        return slots(of) + kTileSlots * kPartialSlotBytes +
               (owner * 2 + static_cast<int>(round % 2)) * kSumSlotBytes;
    }

    // Adds what the ranks before have summed, and passes the tile on: as a partial sum, or, from its owner,
    // as the sum. False: a rank is lost.
    __device__ __forceinline__ bool exchange(int step, uint32_t round, int row, int column,
                                             Accumulators<Tile>& sums, Lost& lost) {
        const bool takes = step > 0, passes = step < size - 1;
        bool came = true;
        if (threadIdx.x == 0 && takes) came = reached(args.peers, &flags(rank)->pushed[block], receipts + 1);
        if (threadIdx.x == 1 && passes)
            came = reached(args.peers, &flags(rank)->taken[block], pushes + 1 - kTileSlots);
        if (!all_came(came, lost)) return false;
        const unsigned char* from = partial_slot(rank, receipts);
        unsigned char* passed_to = partial_slot(after, pushes);
#pragma unroll
        for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
            for (int j = 0; j < Tile::kFragmentsN; ++j) {
                if (takes) add_bits(sums[i][j], ld_global_16(from + fragment_offset<Tile>(i, j)));
                if (passes) st_global_16(passed_to + fragment_offset<Tile>(i, j), bits_of(sums[i][j]));
            }
        if (!passes) {
            staged.put(sums);
            publish(args, staged, row, column, [&](int to) { return sum_slot(to, rank, round); });
        }
        __syncthreads();
        if (takes) ++receipts;
        if (passes) ++pushes;
        const int thread = static_cast<int>(threadIdx.x);
        if (thread == 0 && takes) st_release_sys(&flags(before)->taken[block], receipts);
        if (thread == 0 && passes) st_release_sys(&flags(after)->pushed[block], pushes);
        if (thread < size && thread != rank && !passes)
            st_release_sys(&flags(thread)->finished[block][rank], round);
        return true;
    }

    // The tile of another owner, a round after it was computed. False: a rank is lost.
    __device__ __forceinline__ bool collect(int owner, uint32_t round, int row, int column,
                                            Lost& lost) const {
        const bool came =
            threadIdx.x != 0 || reached(args.peers, &flags(rank)->finished[block][owner], round);
        if (!all_came(came, lost)) return false;
        store_sum<Tile>(args, sum_slot(rank, owner, round), row, column);
        __syncthreads();  // all have read the slot before a later flag says so
        return true;
    }

    __device__ __forceinline__ void end() const {
        if (threadIdx.x != 0) return;
        flags(rank)->pushes[block] = pushes;
        flags(rank)->receipts[block] = receipts;
        flags(rank)->rounds[block] = rounds;
    }
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    matmul_all_reduce_ring(const MatmulAllReduceArgs<typename Tile::T> args) {
    FS_DYN_SMEM(MatmulShared<Tile>, shared);
    shared->lost.clear();
    Ring<Tile> ring(args, shared->tile.sums);
    const int size = ring.size, blocks = static_cast<int>(gridDim.x);
    int longest = 0;
    for (int c = 0; c < size; ++c) longest = max(longest, Chunk<Tile>(args.operands, c, size).num_tiles());
    const int num_rounds = (longest + blocks - 1) / blocks;
    // Work item `index` is step index % size of round index / size.
    const auto chunk_of_step = [&](int step) {
        const int c = ring.rank - 1 - step;
        return c < 0 ? c + size : c;
    };
    const auto has_tile = [&](int index) {
        const Chunk<Tile> chunk(args.operands, chunk_of_step(index % size), size);
        return index < num_rounds * size && index / size * blocks + ring.block < chunk.num_tiles();
    };
    const auto product = [&](int index) {
        const Chunk<Tile> chunk(args.operands, chunk_of_step(index % size), size);
        const int tile = index / size * blocks + ring.block;
        return Product<Tile, PlainColumns>{args.operands,
                                           shared->tile.stages,
                                           {chunk.row(tile), args.operands.m},
                                           {chunk.column(tile), args.operands.n}};
    };
    const auto next_item = [&](int index) {
        while (index < num_rounds * size && !has_tile(index)) ++index;
        return index;
    };
    const auto collect_round = [&](int round) {
        for (int owner = ring.after; owner != ring.rank; owner = next_rank(args.peers, owner)) {
            const Chunk<Tile> chunk(args.operands, owner, size);
            const int tile = round * blocks + ring.block;
            if (tile < chunk.num_tiles() && !ring.collect(owner, ring.rounds + round + 1, chunk.row(tile),
                                                          chunk.column(tile), shared->lost))
                return false;
        }
        return true;
    };

    int index = next_item(0), collected = 0;
    if (index < num_rounds * size) product(index).begin();
    while (index < num_rounds * size) {
        const auto current = product(index);
        Accumulators<Tile> sums;
        current.run(sums);
        round_part<Tile>(sums);
        const int step = index % size, round = index / size, next = next_item(index + 1);
        if (next < num_rounds * size) product(next).begin();
        if (!ring.exchange(step, ring.rounds + round + 1, current.rows.begin, current.columns.begin, sums,
                           shared->lost))
            return;
        index = next;
        for (; collected < index / size - 1; ++collected)
            if (!collect_round(collected)) return;
    }
    for (; collected < num_rounds; ++collected)
        if (!collect_round(collected)) return;
    ring.rounds += num_rounds;
    ring.end();
}

}  // namespace fastserve::cuda
