// y = the sum over ranks of x w^T, x [M, K_rank] and w [N, K_rank]: tiles enter the exchange when they are
// finished, while the next are computed. One persistent kernel; partial tiles travel as fp32 and are rounded
// once, so both strategies give the same bits.
//
// ring: chunk c is a range of columns of tiles, and its sum goes around from rank c + 1 to rank c, who pushes
//   it to all. Block b of every rank computes the same tiles of a chunk, so it talks to the blocks b of its
//   neighbours alone. Tiles are taken in rounds: a round is one tile of each chunk, in the order in which the
//   ring wants them: first that of the chunk which this rank begins, last that of the chunk which it owns.
//   What comes from the rank before was sent a tile ago: a whole main loop hides its way. The sums of a round
//   are collected a round later, for the same reason.
//   A block has two slots at its neighbour for partial tiles, and awaits that one was `taken` before it fills
//   it again. Sums have two slots per owner, for even and odd rounds: an owner sends the sum of round n + 2
//   after every rank has added its part to it, and a rank does that after it has collected round n.
//
// one-shot: every rank pushes its tile to all and sums what all pushed: for few rows, where all columns'
//   tiles run at once. The slots of call n are used again in call n + 2 (why that is safe: all_reduce.cuh).
#pragma once

#include "peers.cuh"
#include "tile.cuh"

namespace fastserve::cuda {

constexpr int kTileSlots = 2;
constexpr int kMaxTiles = 4096;  // of a one-shot call
// Where slots lie does not depend on the tile: a neighbour may still collect the sums of a call with another.
constexpr long long kPartialSlotBytes = 4 * 128 * 128;
constexpr long long kSumSlotBytes = kPartialSlotBytes / 2;

struct MatmulRingFlags {
    uint32_t pushed[kMaxBlocks];  // partial tiles that the rank before has put into this rank's slots
    uint32_t taken[kMaxBlocks];   // those of this rank's that the rank behind has added to its own
    uint32_t finished[kMaxBlocks][kMaxRanks];  // the last round of which an owner's sum has come
    uint32_t pushes[kMaxBlocks], receipts[kMaxBlocks], rounds[kMaxBlocks];  // this rank's own counts
};

struct MatmulOneShotFlags {
    uint32_t arrived[kMaxTiles][kMaxRanks];  // the last call whose partial tile has come
    uint32_t calls[kMaxBlocks];
};

constexpr long long kMatmulRingFlagBytes = (sizeof(MatmulRingFlags) + 127) / 128 * 128;
constexpr long long kMatmulOneShotFlagBytes = (sizeof(MatmulOneShotFlags) + 127) / 128 * 128;

template <typename T>
struct MatmulAllReduceArgs {
    Peers peers;
    Operands<T> operands;
    Output<T> output;
    long long half_bytes;  // one-shot: of the slots of one call; two of them follow the flags
};

// Of a ring's area, for one block.
__host__ __device__ __forceinline__ long long matmul_ring_block_bytes(int size) {
    return kTileSlots * kPartialSlotBytes + 2 * size * kSumSlotBytes;
}

// What half_bytes must be at least.
template <class Tile>
__host__ __device__ __forceinline__ long long matmul_one_shot_bytes(int tiles, int size) {
    return static_cast<long long>(tiles) * size * Tile::kPartialBytes;
}

template <class Tile>
struct MatmulShared {
    TileShared<Tile> tile;
    Lost lost;
};

// --- ring ---

// A tile of one chunk: chunks are whole columns of tiles.
template <class Tile>
struct Chunk {
    int first_column, num_columns, num_rows;  // in tiles

    __device__ Chunk(const Operands<typename Tile::T>& operands, int c, int size)
        : first_column(chunk_begin(c, size, operands.n) / Tile::kN),
          num_columns((chunk_begin(c + 1, size, operands.n) + Tile::kN - 1) / Tile::kN - first_column),
          num_rows((operands.m + Tile::kM - 1) / Tile::kM) {
        static_assert(kChunkColumns % Tile::kN == 0 && Tile::kPartialBytes <= kPartialSlotBytes);
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
        unsigned char* to = partial_slot(after, pushes);
#pragma unroll
        for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
            for (int j = 0; j < Tile::kFragmentsN; ++j) {
                if (takes) add_bits(sums[i][j], ld_global_16(from + partial_offset<Tile>(i, j)));
                if (passes) st_global_16(to + partial_offset<Tile>(i, j), bits_of(sums[i][j]));
            }
        if (!passes) finish(round, row, column, sums);
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

    // The owner's tile: two fragments of the sum fill 16 bytes of the others' slots.
    __device__ __forceinline__ void finish(uint32_t round, int row, int column,
                                           const Accumulators<Tile>& sums) const {
#pragma unroll
        for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
            for (int j = 0; j < Tile::kFragmentsN; j += 2) {
                const float pair[8] = {sums[i][j][0],     sums[i][j][1],     sums[i][j][2],
                                       sums[i][j][3],     sums[i][j + 1][0], sums[i][j + 1][1],
                                       sums[i][j + 1][2], sums[i][j + 1][3]};
                const uint4 bits = pack<T>(pair);
                for (int n = 1, to = after; n < size; ++n, to = next_rank(args.peers, to))
                    st_global_16(sum_slot(to, rank, round) + sum_offset<Tile>(i, j), bits);
            }
        staged.put(sums);
        store_staged(staged, args.output, row, column);
    }

    // The tile of another owner, a round after it was computed. False: a rank is lost.
    __device__ __forceinline__ bool collect(int owner, uint32_t round, int row, int column,
                                            Lost& lost) const {
        const bool came =
            threadIdx.x != 0 || reached(args.peers, &flags(rank)->finished[block][owner], round);
        if (!all_came(came, lost)) return false;
        const unsigned char* from = sum_slot(rank, owner, round);
#pragma unroll 1
        for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll 1
            for (int j = 0; j < Tile::kFragmentsN; j += 2) {
                float pair[8];
                unpack<T>(ld_global_16(from + sum_offset<Tile>(i, j)), pair);
                staged.put(i, j, {pair[0], pair[1], pair[2], pair[3]});
                staged.put(i, j + 1, {pair[4], pair[5], pair[6], pair[7]});
            }
        store_staged(staged, args.output, row, column);
        __syncthreads();  // all are done with the staged tile, and have read the slot before a later flag
                          // says so
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

// --- one-shot ---

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    matmul_all_reduce_one_shot(const MatmulAllReduceArgs<typename Tile::T> args) {
    FS_DYN_SMEM(MatmulShared<Tile>, shared);
    shared->lost.clear();
    const Peers& peers = args.peers;
    const auto flags = [&](int rank) { return reinterpret_cast<MatmulOneShotFlags*>(peers.areas[rank]); };
    const int num_rows = (args.operands.m + Tile::kM - 1) / Tile::kM;
    const int num_tiles = num_rows * ((args.operands.n + Tile::kN - 1) / Tile::kN);
    const int first = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    const int thread = static_cast<int>(threadIdx.x);
    const uint32_t call = flags(peers.rank)->calls[first] + 1;
    const auto slot = [&](int of, int tile, int from) {
        const long long index = static_cast<long long>(tile) * peers.size + from;
        return peers.areas[of] + kMatmulOneShotFlagBytes + call % 2 * args.half_bytes +
               index * Tile::kPartialBytes;
    };
    const auto product = [&](int tile) {
        return Product<Tile, PlainColumns>{args.operands,
                                           shared->tile.stages,
                                           {tile % num_rows * Tile::kM, args.operands.m},
                                           {tile / num_rows * Tile::kN, args.operands.n}};
    };

    const StagedSums<Tile> staged = {shared->tile.sums};
    if (first < num_tiles) product(first).begin();
    for (int tile = first; tile < num_tiles; tile += blocks) {
        Accumulators<Tile> sums;
        product(tile).run(sums);
        if (tile + blocks < num_tiles) product(tile + blocks).begin();
        for (int n = 0, to = peers.rank; n < peers.size; ++n) {
            to = next_rank(peers, to);
            unsigned char* place = slot(to, tile, peers.rank);
#pragma unroll
            for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
                for (int j = 0; j < Tile::kFragmentsN; ++j)
                    st_global_16(place + partial_offset<Tile>(i, j), bits_of(sums[i][j]));
        }
        __syncthreads();
        if (thread < peers.size) st_release_sys(&flags(thread)->arrived[tile][peers.rank], call);
    }

    for (int tile = first; tile < num_tiles; tile += blocks) {
        const auto at = product(tile);
        const bool came =
            thread >= peers.size || reached(peers, &flags(peers.rank)->arrived[tile][thread], call);
        if (!all_came(came, shared->lost)) return;
        const int owner = chunk_of(at.columns.begin, peers.size, args.operands.n);
#pragma unroll 1
        for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll 1
            for (int j = 0; j < Tile::kFragmentsN; ++j) {
                float sums[4] = {-0.0f, -0.0f, -0.0f, -0.0f};  // adding to it changes nothing
                for (int n = 0, rank = owner; n < peers.size; ++n) {
                    rank = next_rank(peers, rank);
                    add_bits(sums, ld_global_16(slot(peers.rank, tile, rank) + partial_offset<Tile>(i, j)));
                }
                staged.put(i, j, sums);
            }
        store_staged(staged, args.output, at.rows.begin, at.columns.begin);
        __syncthreads();
    }
    if (thread != 0) return;
    for (int block = first; block < kMaxBlocks; block += blocks) flags(peers.rank)->calls[block] = call;
}

}  // namespace fastserve::cuda
