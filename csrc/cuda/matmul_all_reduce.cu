// Launches matmul_all_reduce: chooses the strategy and the tile.
#include <algorithm>

#include "exchange_areas.cuh"
#include "matmul_all_reduce_one_shot.cuh"
#include "matmul_all_reduce_ring.cuh"
#include "matmul_all_reduce_two_shot.cuh"
#include "runtime.cuh"
#include "tiles.cuh"

namespace fastserve::cuda {

namespace {

// Large tiles from here on: as many as an H100 has multiprocessors, about. A constant, since all ranks must
// choose alike, on whatever devices.
constexpr long long kEnoughTiles = 128;
// Slices of fewer rows read w for longer than they multiply (H100: 989 TFLOP/s against 3.35 TB/s meet at 295
// rows); they come with more than 16384 columns. There the ring's fp32 costs less.
constexpr int kFewestSliceRows = 512;

struct MatmulAllReduceChoice {
    Strategy strategy;
    TileSize tile;
    int rows;  // of one launch
};

// What two shots take at once: whole rows of tiles, 0 if not one fits.
template <class Tile>
int two_shot_rows(int n, int size) {
    const long long fit = kMatmulHalfBytes / matmul_two_shot_bytes<Tile>(1, n, size);
    return static_cast<int>(std::min(fit, kMaxTiles / num_tiles<Tile>(1, n))) * Tile::kM;
}

template <class Tile>
bool fits_one_shot(int m, int n, int size) {
    const long long tiles = num_tiles<Tile>(m, n);
    return tiles <= kMaxTiles && matmul_one_shot_bytes<Tile>(tiles, size) <= kMatmulHalfBytes;
}

// By what all ranks know: not by K, of which each has its own.
MatmulAllReduceChoice choose_matmul_all_reduce(int m, int n, int size) {
    const TileSize small = m <= 16 ? TileSize::kSmall : TileSize::kMiddle;
    const bool is_large = m > 64 && num_tiles<LargeTile<__half>>(m, n) >= kEnoughTiles;
    const TileSize tile = is_large ? TileSize::kLarge : small;
    const bool fits = with_tile(small, [&]<template <typename> class SomeTile>() {
        return fits_one_shot<SomeTile<__half>>(m, n, size);
    });
    if (fits && goes_in_one_shot(2LL * size * m * n, size)) return {Strategy::kOneShot, small, m};
    const int rows = with_tile(
        tile, [&]<template <typename> class SomeTile>() { return two_shot_rows<SomeTile<__half>>(n, size); });
    if (rows >= std::min(m, kFewestSliceRows)) return {Strategy::kTwoShot, tile, std::min(rows, m)};
    return {Strategy::kRing, TileSize::kLarge, m};
}

template <class Tile, auto kKernel>
void run(const Exchange& exchange, const MatmulCall& call, Area area, long long most_blocks, Stream stream) {
    using T = typename Tile::T;
    const Rows<T> y = {static_cast<T*>(call.y.data), call.y.ld, call.n, is_aligned(call.y, call.type)};
    const MatmulAllReduceArgs<T> args = {peers_in(exchange, area), operands_of<T>(call), y, kMatmulHalfBytes};
    const int limit = std::min(kMatmulBlocks, num_multiprocessors());
    const int blocks = static_cast<int>(std::min<long long>(most_blocks, limit));
    launch<kKernel>(blocks, Tile::kThreads, sizeof(MatmulShared<Tile>), args, stream);
}

template <class Tile>
void run_ring(const Exchange& exchange, const MatmulCall& call, Stream stream) {
    const long long of_a_chunk = most_owned_tiles<Tile>(ceil_div(call.m, Tile::kM), call.n, exchange.size);
    run<Tile, matmul_all_reduce_ring<Tile>>(exchange, call, Area::kMatmulRing, of_a_chunk, stream);
}

template <class Tile>
void run_one_shot(const Exchange& exchange, const MatmulCall& call, Stream stream) {
    run<Tile, matmul_all_reduce_one_shot<Tile>>(exchange, call, Area::kMatmulShots,
                                                num_tiles<Tile>(call.m, call.n), stream);
}

template <class Tile>
void run_two_shot(const Exchange& exchange, const MatmulCall& call, Stream stream) {
    run<Tile, matmul_all_reduce_two_shot<Tile>>(exchange, call, Area::kMatmulShots,
                                                num_tiles<Tile>(call.m, call.n), stream);
}

// Rows [begin, begin + rows) of the product.
MatmulCall rows_of(const MatmulCall& call, int begin, int rows) {
    const auto skip = [&](const Matrix& matrix) {
        const int64_t bytes = begin * matrix.ld * static_cast<int64_t>(size_of(call.type));
        return Matrix{static_cast<char*>(matrix.data) + bytes, matrix.ld};
    };
    MatmulCall slice = call;
    slice.x = skip(call.x), slice.y = skip(call.y), slice.m = rows;
    return slice;
}

template <typename T>
void run_as(const MatmulAllReduceChoice& choice, const Exchange& exchange, const MatmulCall& call,
            Stream stream) {
    switch (choice.strategy) {
        case Strategy::kOneShot:
            return choice.tile == TileSize::kSmall ? run_one_shot<SmallTile<T>>(exchange, call, stream)
                                                   : run_one_shot<MiddleTile<T>>(exchange, call, stream);
        case Strategy::kTwoShot:
            for (int begin = 0; begin < call.m; begin += choice.rows) {
                const MatmulCall slice = rows_of(call, begin, std::min(choice.rows, call.m - begin));
                with_tile(choice.tile, [&]<template <typename> class SomeTile>() {
                    run_two_shot<SomeTile<T>>(exchange, slice, stream);
                });
            }
            return;
        case Strategy::kRing:
            return run_ring<LargeTile<T>>(exchange, call, stream);
    }
}

}  // namespace

void matmul_all_reduce(const Exchange& exchange, const MatmulCall& call, Stream stream) {
    if (call.m == 0 || call.n == 0) return;
    require(call.bias == nullptr && call.epilogue == Epilogue::none,
            "matmul_all_reduce takes no bias and no epilogue");
    if (call.y_type == DataType::f32) {  // no kernel here exchanges parts of fp32
        matmul(call, stream);
        return all_reduce(exchange, {call.y, call.y, call.m, call.n, DataType::f32}, stream);
    }
    require(call.y_type == call.type, "y must be fp32 or of x's dtype");
    const MatmulAllReduceChoice choice = choose_matmul_all_reduce(call.m, call.n, exchange.size);
    if (call.type == DataType::bf16)
        run_as<__nv_bfloat16>(choice, exchange, call, stream);
    else if (call.type == DataType::f16)
        run_as<__half>(choice, exchange, call, stream);
    else
        require(false, "type must be bf16 or f16");
}

}  // namespace fastserve::cuda
