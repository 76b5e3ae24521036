// Launches matmul: chooses the tile.
#include "matmul.cuh"

#include <algorithm>

#include "runtime.cuh"
#include "tiles.cuh"

namespace fastserve::cuda {

namespace {

// Large tiles once they fill the multiprocessors; small ones while x is but a few rows.
TileSize choose_matmul(int m, int n, int multiprocessors) {
    if (m <= 16) return TileSize::kSmall;
    return m > 64 && ceil_div(m, 128) * ceil_div(n, 128) >= multiprocessors ? TileSize::kLarge
                                                                            : TileSize::kMiddle;
}

template <class Tile, class Columns>
void run(const MatmulCall& call, Stream stream) {
    using T = typename Tile::T;
    constexpr int kColumns = Columns::kGated ? Tile::kN / 2 : Tile::kN;
    // Small tiles are many to a multiprocessor: as many as its shared memory holds.
    const int per_multiprocessor =
        static_cast<int>(std::max<size_t>(1, 160 * 1024 / sizeof(TileShared<Tile>)));
    const long long tiles = ceil_div(call.m, Tile::kM) * ceil_div(call.n, kColumns);
    const int blocks =
        static_cast<int>(std::min<long long>(tiles, num_multiprocessors() * per_multiprocessor));
    const Activation activation =
        Columns::kGated ? Activation::kNone : static_cast<Activation>(call.epilogue);
    const MatmulArgs<T> args = {operands_of<T>(call), call.bias, activation, output_of<T>(call)};
    launch<matmul<Tile, Columns>>(blocks, Tile::kThreads, sizeof(TileShared<Tile>), args, stream);
}

template <typename T>
void run_type(const MatmulCall& call, Stream stream) {
    with_tile(choose_matmul(call.m, call.n, num_multiprocessors()),
              [&]<template <typename> class SomeTile>() {
                  if (call.epilogue == Epilogue::silu_mul)
                      run<SomeTile<T>, GateUpColumns>(call, stream);
                  else
                      run<SomeTile<T>, PlainColumns>(call, stream);
              });
}

}  // namespace

void matmul(const MatmulCall& call, Stream stream) {
    if (call.m == 0 || call.n == 0) return;
    require(call.epilogue != Epilogue::silu_mul || call.bias == nullptr, "silu_mul takes no bias");
    if (call.type == DataType::bf16)
        run_type<__nv_bfloat16>(call, stream);
    else if (call.type == DataType::f16)
        run_type<__half>(call, stream);
    else
        require(false, "type must be bf16 or f16");
}

}  // namespace fastserve::cuda
