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

__device__ __forceinline__ float silu(float x) {
    return x / (1 + __expf(-x));
}

// silu(x) = x sigmoid(x), and gelu(x) = x / 2 (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715
// x^3): one formula, since code for each, 64 times in a row, would be most of the kernel.
__device__ __forceinline__ float activate(float x, Activation activation) {
    if (activation == Activation::kNone) return x;
    if (activation == Activation::kRelu) return x > 0 ? x : 0;
    const bool gelu = activation == Activation::kGeluTanh;
    const float linear = gelu ? 1.5957691216f : 1, cubic = gelu ? 0.0713548163f : 0;
    return x / (1 + __expf(-x * (linear + cubic * x * x)));
}

template <typename T>
struct MatmulArgs {
    Operands<T> operands;
    const float* bias;  // [N], null: none
    Activation activation;
    Output<T> output;  // n: N, or F with gate and up
};

constexpr int kGroupRows = 8;  // rows of tiles

struct TilePlace {
    int row, column;  // of the tile's first element in the output
};

// Tile `index` of num_rows x num_columns, in groups of kGroupRows rows; within a group, column by column.
__device__ __forceinline__ TilePlace place_of(int index, int num_rows, int num_columns) {
    const int group = index / (kGroupRows * num_columns), first = group * kGroupRows;
    const int rows = min(num_rows - first, kGroupRows), within = index - first * num_columns;
    return {first + within % rows, within / rows};
}

// Eight columns of the output, from `column` on in the tile, which begins at `first_column`.
template <class Tile, class Columns>
__device__ __forceinline__ void finish(const MatmulArgs<typename Tile::T>& args,
                                       const StagedSums<Tile>& staged, int row, int column, int first_column,
                                       float (&eight)[8]) {
    if constexpr (Columns::kGated) {
        float up[8];
        staged.get(row, column * 2, eight);
        staged.get(row, column * 2 + 8, up);
#pragma unroll
        for (int e = 0; e < 8; ++e) eight[e] = silu(eight[e]) * up[e];
    } else {
        staged.get(row, column, eight);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const int at = first_column + column + e;
            const float bias = args.bias != nullptr && at < args.output.n ? args.bias[at] : 0;
            eight[e] = activate(eight[e] + bias, args.activation);
        }
    }
}

template <class Tile, class Columns>
__global__ void __launch_bounds__(Tile::kThreads, 1) matmul(const MatmulArgs<typename Tile::T> args) {
    FS_DYN_SMEM(TileShared<Tile>, shared);
    const StagedSums<Tile> staged = {shared->sums};
    constexpr int kColumns = Columns::kGated ? Tile::kN / 2 : Tile::kN;  // of the output
    const int num_rows = (args.operands.m + Tile::kM - 1) / Tile::kM;
    const int num_columns = (args.output.n + kColumns - 1) / kColumns;
    const auto place = [&](int index) {
        const TilePlace tile = place_of(index, num_rows, num_columns);
        return TilePlace{tile.row * Tile::kM, tile.column * kColumns};
    };
    const auto product = [&](const TilePlace& at) {
        return Product<Tile, Columns>{
            args.operands, shared->stages, {at.row, args.operands.m}, {at.column, args.output.n}};
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
        staged.put(sums);
        store_staged<Tile, kColumns>(args.output, at.row, at.column,
                                     [&](int row, int column, float(&eight)[8]) {
                                         finish<Tile, Columns>(args, staged, row, column, at.column, eight);
                                     });
    }
}

}  // namespace fastserve::cuda
