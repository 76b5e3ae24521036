// matmul_all_reduce in two shots: a rank pushes its part of a tile to the tile's owner, who sums all parts
// and pushes the sum to all.
//
// A block takes its tiles in the order of their owners: those of the next rank's chunk first, its own last.
// So at any time ranks push to different owners over different links, and when an owner comes to its own
// tiles, the parts of the others, who were there a chunk ago, have come: the sum is made with the owner's
// part still in registers, while the first slices of its next tile are on their way, and its pushes pass
// under that tile's product. Sums are collected behind the last product.
//
// No wait can be for ever, unless a rank is lost. A block does in turn: (1) the parts of others' tiles, which
// awaits nothing; (2) its own tiles, each of which awaits parts, that is (1) of the blocks of its number on
// other ranks; (3) the collection, which awaits (2) of these. Nobody awaits what comes later in this order
// than what he does himself, and only blocks of one number await each other: the lowest number that has not
// ended on some rank runs there, or will before any higher one, whether a device holds all blocks or a few.
//
// Slots of a rank: [its tile][from] for parts, then [tile] for the sums of all tiles.
#pragma once

#include "matmul_all_reduce.cuh"

namespace fastserve::cuda {

// The most tiles that a rank may own, in num_rows rows of tiles.
template <class Tile>
__host__ __device__ __forceinline__ int most_owned_tiles(int num_rows, int n, int size) {
    const int units = (n + kChunkColumns - 1) / kChunkColumns;
    return (units + size - 1) / size * (kChunkColumns / Tile::kN) * num_rows;
}

// What half_bytes must be at least.
template <class Tile>
__host__ __device__ __forceinline__ long long matmul_two_shot_bytes(int num_rows, int n, int size) {
    const long long sums = static_cast<long long>(num_rows) * ((n + Tile::kN - 1) / Tile::kN);
    return (static_cast<long long>(most_owned_tiles<Tile>(num_rows, n, size)) * size + sums) * Tile::kBytes;
}

template <class Tile>
struct TwoShot {
    using T = typename Tile::T;
    const Shots<Tile>& shots;
    const Peers& peers;
    const int block, blocks;
    const int count;  // of this block's tiles
    const int begin;  // the first of them that is not before the next rank's chunk

    __device__ explicit TwoShot(const Shots<Tile>& s)
        : shots(s),
          peers(s.args.peers),
          block(static_cast<int>(blockIdx.x)),
          blocks(static_cast<int>(gridDim.x)),
          count((shots.num_tiles - block + blocks - 1) / blocks),
          begin((first_tile(next_rank(peers, peers.rank)) - block + blocks - 1) / blocks) {}

    __device__ __forceinline__ int first_tile(int c) const {
        return chunk_begin(c, peers.size, shots.args.operands.n) / Tile::kN * shots.num_rows;
    }
    __device__ __forceinline__ int tile(int index) const {
        const int i = begin + index;
        return block + (i < count ? i : i - count) * blocks;
    }
    __device__ __forceinline__ unsigned char* part_slot(int owner, int tile, int from) const {
        return shots.slot(owner, static_cast<long long>(tile - first_tile(owner)) * peers.size + from);
    }
    __device__ __forceinline__ unsigned char* sum_slot(int rank, int tile) const {
        const int parts = most_owned_tiles<Tile>(shots.num_rows, shots.args.operands.n, peers.size);
        return shots.slot(rank, static_cast<long long>(parts) * peers.size + tile);
    }

    __device__ __forceinline__ void push(int tile, int owner, const Accumulators<Tile>& sums) const {
        push_part<Tile>(sums, part_slot(owner, tile, peers.rank));
        __syncthreads();
        if (threadIdx.x == 0) shots.raise(owner, tile);
    }

    // This rank's own tile: its part is the last in the order of the sum. False: a rank is lost.
    __device__ __forceinline__ bool sum_up(int tile, const Accumulators<Tile>& sums) const {
        const int thread = static_cast<int>(threadIdx.x);
        const bool is_peer = thread < peers.size && thread != peers.rank;
        if (!all_came(!is_peer || shots.has_come(tile, thread), shots.shared.lost)) return false;
        const StagedSums<Tile> staged = shots.staged();
        staged.put(sums);
#pragma unroll 1
        for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll 1
            for (int j = 0; j < Tile::kFragmentsN; j += 2) {
                const auto part = [&](int from) {
                    return ld_global_16(part_slot(peers.rank, tile, from) + pair_offset<Tile>(i, j));
                };
                float sum[8], own[8];
                sum_parts<T>(peers, peers.rank, peers.size - 1, part, sum);
                staged.get_pair(i, j, own);
                unpack<T>(pack<T>(own), own);
#pragma unroll
                for (int e = 0; e < 8; ++e) sum[e] += own[e];
                staged.put_pair(i, j, sum);
            }
        publish(shots.args, staged, shots.row(tile), shots.column(tile),
                [&](int to) { return sum_slot(to, tile); });
        __syncthreads();
        if (is_peer) shots.raise(thread, tile);
        return true;
    }

    // False: a rank is lost.
    __device__ __forceinline__ bool collect(int tile, int owner) const {
        if (!all_came(threadIdx.x != 0 || shots.has_come(tile, owner), shots.shared.lost)) return false;
        store_sum<Tile>(shots.args, sum_slot(peers.rank, tile), shots.row(tile), shots.column(tile));
        __syncthreads();
        return true;
    }
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    matmul_all_reduce_two_shot(const MatmulAllReduceArgs<typename Tile::T> args) {
    FS_DYN_SMEM(MatmulShared<Tile>, shared);
    shared->lost.clear();
    const Shots<Tile> shots(args, *shared);
    const TwoShot<Tile> block(shots);

    shots.product(block.tile(0)).begin();
    for (int index = 0; index < block.count; ++index) {
        const int tile = block.tile(index), owner = shots.owner(tile);
        Accumulators<Tile> sums;
        shots.product(tile).run(sums);
        if (index + 1 < block.count) shots.product(block.tile(index + 1)).begin();
        if (owner != args.peers.rank)
            block.push(tile, owner, sums);
        else if (!block.sum_up(tile, sums))
            return;
    }
    for (int index = 0; index < block.count; ++index) {
        const int tile = block.tile(index), owner = shots.owner(tile);
        if (owner != args.peers.rank && !block.collect(tile, owner)) return;
    }
    shots.end();
}

}  // namespace fastserve::cuda
