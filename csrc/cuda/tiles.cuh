// The tiles that are compiled, and what a call must look like for any of them.
#pragma once

#include "arguments.h"
#include "tile.cuh"

namespace fastserve::cuda {

// 96 KB of slices, and 64 KB to stage the sums: what an A100's multiprocessor has.
template <typename T>
using LargeTile = Tile<T, 128, 128, 3, 2, 4>;
template <typename T>
using MiddleTile = Tile<T, 64, 64, 4, 2, 2>;
// Decode: bound by reading w. 128 blocks for 4096 columns, each with five slices, 20 KB, on their way.
template <typename T>
using SmallTile = Tile<T, 16, 32, 6, 1, 2>;

enum class TileSize { kSmall, kMiddle, kLarge };

// call.operator()<SomeTile>() for the tile of that size.
template <class Call>
auto with_tile(TileSize size, const Call& call) {
    switch (size) {
        case TileSize::kSmall:
            return call.template operator()<SmallTile>();
        case TileSize::kMiddle:
            return call.template operator()<MiddleTile>();
        default:
            return call.template operator()<LargeTile>();
    }
}

template <typename T>
Operands<T> operands_of(const MatmulCall& call) {
    require(is_aligned(call.x, call.type), "x must start at a multiple of 16 bytes, and so must its rows");
    require(is_aligned(call.w, call.type), "w must start at a multiple of 16 bytes, and so must its rows");
    return {static_cast<const T*>(call.x.data),
            call.x.ld,
            static_cast<const T*>(call.w.data),
            call.w.ld,
            call.m,
            call.n,
            call.k};
}

template <typename T>
Output<T> output_of(const MatmulCall& call) {
    require(call.y_type == call.type || call.y_type == DataType::f32, "y must be fp32 or of x's dtype");
    return {call.y.data,
            call.y.ld,
            call.m,
            call.n,
            call.y_type == DataType::f32,
            is_aligned(call.y, call.y_type)};
}

template <class Tile>
long long num_tiles(int m, int n) {
    return ceil_div(m, Tile::kM) * ceil_div(n, Tile::kN);
}

}  // namespace fastserve::cuda
