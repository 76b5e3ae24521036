// y = the sum over ranks of x w^T, x [M, K_rank] and w [N, K_rank]: tiles enter the exchange when they are
// finished, while the next are computed. One persistent kernel, by three strategies with the same bits, which
// are those of matmul and all_reduce in turn: a rank rounds its part of a tile to T before anybody adds it,
// parts are added in fp32 in the order of the column's chunk (peers.cuh), and the sum is rounded once. A tile
// lies in one chunk, whose rank is its *owner*.
//
// one-shot: everybody pushes its part to everybody. One hop, (R - 1) S bytes out of a rank, S of a matrix of
//   T: what is small.
// two-shot: parts go to the tile's owner, the sum from there to all. Two hops, 2 (R - 1) / R S bytes.
// ring: parts add up from rank to rank, and the sum goes to all. R hops, 3 (R - 1) / R S bytes, for what is
//   on its way is fp32; but slots for a few tiles a block are enough, however large the matrix is.
//
// Parts travel in the order in which threads hold them, since whoever computes the same tile holds the same
// elements; sums travel by rows of the tile, as they are stored.
#pragma once

#include "peers.cuh"
#include "tile.cuh"

namespace fastserve::cuda {

constexpr int kMaxTiles = 4096;  // of a call in one or two shots

template <typename T>
struct MatmulAllReduceArgs {
    Peers peers;
    Operands<T> operands;
    Rows<T> y;             // [m, n]
    long long half_bytes;  // one and two shots: of the slots of one call; two of them follow the flags

    __device__ __forceinline__ Output<T> output() const {
        return {y.data, y.ld, operands.m, operands.n, false, y.aligned};
    }
};

template <class Tile>
struct MatmulShared {
    TileShared<Tile> tile;
    Lost lost;
};

// --- parts ---

// Fragments (i, j) and (i, j + 1), j even, rounded: 16 bytes.
template <class Tile>
__device__ __forceinline__ uint4 rounded_pair(const Accumulators<Tile>& sums, int i, int j) {
    const float pair[8] = {sums[i][j][0],     sums[i][j][1],     sums[i][j][2],     sums[i][j][3],
                           sums[i][j + 1][0], sums[i][j + 1][1], sums[i][j + 1][2], sums[i][j + 1][3]};
    return pack<typename Tile::T>(pair);
}

// Where they lie in a slot.
template <class Tile>
__device__ __forceinline__ int pair_offset(int i, int j) {
    return 16 * ((i * Tile::kFragmentsN + j) / 2 * Tile::kThreads + static_cast<int>(threadIdx.x));
}

template <class Tile>
__device__ __forceinline__ void push_part(const Accumulators<Tile>& sums, unsigned char* slot) {
#pragma unroll
    for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kFragmentsN; j += 2)
            st_global_16(slot + pair_offset<Tile>(i, j), rounded_pair<Tile>(sums, i, j));
}

// --- sums ---

// The owner's finished tile, staged: stored, and pushed to the slots of all others, by rows.
template <class Tile, class SlotOf>
__device__ __forceinline__ void publish(const MatmulAllReduceArgs<typename Tile::T>& args,
                                        const StagedSums<Tile>& staged, int row, int column,
                                        const SlotOf& slot_of) {
    const Peers& peers = args.peers;
    store_staged<Tile, Tile::kN>(args.output(), row, column, [&](int r, int c, float(&eight)[8]) {
        staged.get(r, c, eight);
        const uint4 bits = pack<typename Tile::T>(eight);
        for (int to = next_rank(peers, peers.rank); to != peers.rank; to = next_rank(peers, to))
            st_global_16(slot_of(to) + (r * Tile::kN + c) * 2, bits);
    });
}

// A tile that its owner has pushed. All of a thread's loads are on their way before the first store.
template <class Tile>
__device__ __forceinline__ void store_sum(const MatmulAllReduceArgs<typename Tile::T>& args,
                                          const unsigned char* slot, int row, int column) {
    constexpr int kVectors = Tile::kBytes / 16 / Tile::kThreads;
    static_assert(kVectors * Tile::kThreads * 16 == Tile::kBytes);
    uint4 vectors[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
        vectors[v] = ld_global_16(slot + (v * Tile::kThreads + static_cast<int>(threadIdx.x)) * 16);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        const int i = v * Tile::kThreads + static_cast<int>(threadIdx.x);
        const int r = i / (Tile::kN / 8), c = i % (Tile::kN / 8) * 8;
        if (row + r < args.operands.m && column + c < args.operands.n)
            args.y.store(row + r, (column + c) / 8, vectors[v]);
    }
}

// --- calls in one and two shots ---
//
// Both use one area, and the slots of call n again in call n + 2 (why that is safe: all_reduce.cuh; where one
// rank owns all tiles, the others' flags reach a rank through that owner's). Tile t is column t / num_rows of
// the tiles, row t % num_rows, and block t % blocks computes it on every rank, so that a block waits for the
// blocks of its own number alone. There are no more blocks than tiles.

struct MatmulShotFlags {
    uint32_t arrived[kMaxTiles][kMaxRanks];  // [tile][from]: the last call whose part, or sum, has come
    uint32_t calls[kMaxBlocks];              // this rank's own count, the same for every block
};

constexpr long long kMatmulShotFlagBytes = (sizeof(MatmulShotFlags) + 127) / 128 * 128;

template <class Tile>
struct Shots {
    using T = typename Tile::T;
    const MatmulAllReduceArgs<T>& args;
    MatmulShared<Tile>& shared;
    const int num_rows, num_tiles;
    const uint32_t call;

    __device__ Shots(const MatmulAllReduceArgs<T>& arguments, MatmulShared<Tile>& memory)
        : args(arguments),
          shared(memory),
          num_rows((args.operands.m + Tile::kM - 1) / Tile::kM),
          num_tiles(num_rows * ((args.operands.n + Tile::kN - 1) / Tile::kN)),
          call(flags(args.peers.rank)->calls[blockIdx.x] + 1) {
        static_assert(kChunkColumns % Tile::kN == 0);
    }

    __device__ __forceinline__ MatmulShotFlags* flags(int rank) const {
        return reinterpret_cast<MatmulShotFlags*>(args.peers.areas[rank]);
    }
    __device__ __forceinline__ unsigned char* slot(int rank, long long index) const {
        return args.peers.areas[rank] + kMatmulShotFlagBytes + call % 2 * args.half_bytes +
               index * Tile::kBytes;
    }
    __device__ __forceinline__ int row(int tile) const { return tile % num_rows * Tile::kM; }
    __device__ __forceinline__ int column(int tile) const { return tile / num_rows * Tile::kN; }
    __device__ __forceinline__ int owner(int tile) const {
        return chunk_of(column(tile), args.peers.size, args.operands.n);
    }
    __device__ __forceinline__ StagedSums<Tile> staged() const { return {shared.tile.sums}; }
    __device__ __forceinline__ Product<Tile, PlainColumns> product(int tile) const {
        return {
            args.operands, shared.tile.stages, {row(tile), args.operands.m}, {column(tile), args.operands.n}};
    }
    // Says that this rank's part of the tile, or its sum, lies in the slots of `rank`. By one thread, once
    // all have met.
    __device__ __forceinline__ void raise(int rank, int tile) const {
        st_release_sys(&flags(rank)->arrived[tile][args.peers.rank], call);
    }
    __device__ __forceinline__ bool has_come(int tile, int from) const {
        return reached(args.peers, &flags(args.peers.rank)->arrived[tile][from], call);
    }
    // Block b counts for the blocks that this call has not, too: the next may have more.
    __device__ __forceinline__ void end() const {
        if (threadIdx.x != 0) return;
        for (unsigned block = blockIdx.x; block < kMaxBlocks; block += gridDim.x)
            flags(args.peers.rank)->calls[block] = call;
    }
};

}  // namespace fastserve::cuda
