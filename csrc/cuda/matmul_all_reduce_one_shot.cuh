// matmul_all_reduce in one shot: every rank pushes its part of a tile to all and sums what all have pushed.
// For few rows: all of w's columns are on their way at once, and the parts leave behind the last slice.
#pragma once

#include "matmul_all_reduce.cuh"

namespace fastserve::cuda {

// Slots [tile][from] of one call: what half_bytes must be at least.
template <class Tile>
__host__ __device__ __forceinline__ long long matmul_one_shot_bytes(int tiles, int size) {
    return static_cast<long long>(tiles) * size * Tile::kBytes;
}

// A tile whose parts have come.
template <class Tile>
__device__ __forceinline__ void store_sum_of_parts(const Shots<Tile>& shots, int tile) {
    using T = typename Tile::T;
    const Peers& peers = shots.args.peers;
    const int owner = shots.owner(tile);
    const StagedSums<Tile> staged = shots.staged();
#pragma unroll 1
    for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll 1
        for (int j = 0; j < Tile::kFragmentsN; j += 2) {
            const auto part = [&](int from) {
                return ld_global_16(shots.slot(peers.rank, static_cast<long long>(tile) * peers.size + from) +
                                    pair_offset<Tile>(i, j));
            };
            float sum[8];
            sum_parts<T>(peers, owner, peers.size, part, sum);
            staged.put_pair(i, j, sum);
        }
    store_staged(staged, shots.args.output(), shots.row(tile), shots.column(tile));
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    matmul_all_reduce_one_shot(const MatmulAllReduceArgs<typename Tile::T> args) {
    FS_DYN_SMEM(MatmulShared<Tile>, shared);
    shared->lost.clear();
    const Shots<Tile> shots(args, *shared);
    const Peers& peers = args.peers;
    const int first = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    const int thread = static_cast<int>(threadIdx.x);

    shots.product(first).begin();
    for (int tile = first; tile < shots.num_tiles; tile += blocks) {
        Accumulators<Tile> sums;
        shots.product(tile).run(sums);
        if (tile + blocks < shots.num_tiles) shots.product(tile + blocks).begin();
        for (int n = 0, to = peers.rank; n < peers.size; ++n) {
            to = next_rank(peers, to);
            push_part<Tile>(sums, shots.slot(to, static_cast<long long>(tile) * peers.size + peers.rank));
        }
        __syncthreads();
        if (thread < peers.size) shots.raise(thread, tile);
    }
    for (int tile = first; tile < shots.num_tiles; tile += blocks) {
        if (!all_came(thread >= peers.size || shots.has_come(tile, thread), shared->lost)) return;
        store_sum_of_parts(shots, tile);
        __syncthreads();
    }
    shots.end();
}

}  // namespace fastserve::cuda
