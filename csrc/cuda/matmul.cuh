// y = activation(x w^T + bias), or silu(gate) * up where w = [gate | up]: column-parallel, nothing is
// exchanged.
//
// A grid of as many blocks as run at once walks over the tiles; tiles of eight rows of tiles follow each
// other, so that what they share of w stays in the second-level cache. The next tile's first slices are on
// their way while this one's are stored.
#pragma once

#include "tile.cuh"

namespace fastserve::cuda {

enum class Activation : int { kNone, kSilu, kGeluTanh, kRelu };

template <typename T, typename O>
struct MatmulArgs {
    Operands<T> operands;
    const float* bias;  // [N], null: none
    Activation activation;
    Output<O> output;  // n: N, or F with gate and up
};

constexpr int kGroupRows = 8;  // rows of tiles

__device__ __forceinline__ float silu(float x) {
    return x / (1 + __expf(-x));
}

__device__ __forceinline__ float activate(float x, Activation activation) {
    switch (activation) {
        case Activation::kSilu:
            return silu(x);
        case Activation::kGeluTanh:  // x / 2 (1 + tanh(u)) = x sigmoid(2 u)
            return x / (1 + __expf(-1.5957691216f * (x + 0.044715f * x * x * x)));
        case Activation::kRelu:
            return x > 0 ? x : 0;
        default:
            return x;
    }
}

struct TilePlace {
    int row, column;  // of the tile's first element in the output
};

// Tile `index` of num_rows x num_columns, in groups of kGroupRows rows; within a group, column by column.
__device__ __forceinline__ TilePlace place_of(int index, int num_rows, int num_columns) {
    const int group = index / (kGroupRows * num_columns), first = group * kGroupRows;
    const int rows = min(num_rows - first, kGroupRows), within = index - first * num_columns;
    return {first + within % rows, within / rows};
}

template <class Tile, typename O>
__device__ __forceinline__ void store_plain(const MatmulArgs<typename Tile::T, O>& args,
                                            const TilePlace& place, const Accumulators<Tile>& sums) {
#pragma unroll
    for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kFragmentsN; ++j)
#pragma unroll
            for (int e = 0; e < 4; e += 2) {
                const int row = place.row + Tile::row(i, e), column = place.column + Tile::column(j, e);
                float first = sums[i][j][e], second = sums[i][j][e + 1];
                if (args.bias != nullptr) {
                    if (column < args.output.n) first += args.bias[column];
                    if (column + 1 < args.output.n) second += args.bias[column + 1];
                }
                args.output.store(row, column, activate(first, args.activation),
                                  activate(second, args.activation));
            }
}

template <class Tile, typename O>
__device__ __forceinline__ void store_gated(const MatmulArgs<typename Tile::T, O>& args,
                                            const TilePlace& place, const Accumulators<Tile>& sums) {
#pragma unroll
    for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kFragmentsN; j += 2)
#pragma unroll
            for (int e = 0; e < 4; e += 2) {
                const int column =
                    Tile::warp_column() / 2 + j / 2 * 8 + Tile::column(0, e) - Tile::warp_column();
                args.output.store(place.row + Tile::row(i, e), place.column + column,
                                  silu(sums[i][j][e]) * sums[i][j + 1][e],
                                  silu(sums[i][j][e + 1]) * sums[i][j + 1][e + 1]);
            }
}

template <class Tile, typename O, class Columns>
__global__ void __launch_bounds__(Tile::kThreads) matmul(const MatmulArgs<typename Tile::T, O> args) {
    FS_DYN_SMEM(unsigned char, shared);
    constexpr int kColumns = Columns::kGated ? Tile::kN / 2 : Tile::kN;  // of the output
    const int num_rows = (args.operands.m + Tile::kM - 1) / Tile::kM;
    const int num_columns = (args.output.n + kColumns - 1) / kColumns;
    const auto place = [&](int index) {
        const TilePlace tile = place_of(index, num_rows, num_columns);
        return TilePlace{tile.row * Tile::kM, tile.column * kColumns};
    };
    const auto product = [&](const TilePlace& at) {
        return Product<Tile, Columns>{
            args.operands, shared, {at.row, args.operands.m}, {at.column, args.output.n}};
    };

    int index = static_cast<int>(blockIdx.x);
    const int num_tiles = num_rows * num_columns;
    if (index < num_tiles) product(place(index)).begin();
    while (index < num_tiles) {
        const TilePlace at = place(index);
        Accumulators<Tile> sums;
        product(at).run(sums);
        index += static_cast<int>(gridDim.x);
        if (index < num_tiles) product(place(index)).begin();
        if constexpr (Columns::kGated)
            store_gated<Tile>(args, at, sums);
        else
            store_plain<Tile>(args, at, sums);
    }
}

}  // namespace fastserve::cuda
