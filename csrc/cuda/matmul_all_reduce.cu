// Launches matmul_all_reduce: chooses the strategy and the tile.
#include "matmul_all_reduce.cuh"

#include <algorithm>

#include "exchange_areas.cuh"
#include "runtime.cuh"
#include "tiles.cuh"

namespace fastserve::cuda {

namespace {

// One-shot sends (R - 1) times what the ring does in 2 (R - 1) hops of 2-3 us: they meet at some 64 rows of
// 8192 columns.
constexpr int kOneShotRows = 64;

template <class Tile, auto kKernel>
void run(const Exchange& exchange, const MatmulCall& call, Area area, long long most_blocks, Stream stream) {
    using T = typename Tile::T;
    const MatmulAllReduceArgs<T> args = {peers_in(exchange, area), operands_of<T>(call), output_of<T>(call),
                                         kMatmulHalfBytes};
    const int limit = std::min(kMatmulBlocks, num_multiprocessors());
    const int blocks = static_cast<int>(std::min<long long>(most_blocks, limit));
    launch<kKernel>(blocks, Tile::kThreads, sizeof(MatmulShared<Tile>), args, stream);
}

template <class Tile>
bool fits_one_shot(const MatmulCall& call, int size) {
    const long long tiles = num_tiles<Tile>(call.m, call.n);
    return call.m <= kOneShotRows && tiles <= kMaxTiles &&
           matmul_one_shot_bytes<Tile>(tiles, size) <= kMatmulHalfBytes;
}

template <class Tile>
void run_one_shot(const Exchange& exchange, const MatmulCall& call, Stream stream) {
    run<Tile, matmul_all_reduce_one_shot<Tile>>(exchange, call, Area::kMatmulOneShot,
                                                num_tiles<Tile>(call.m, call.n), stream);
}

template <typename T>
void run_type(const Exchange& exchange, const MatmulCall& call, Stream stream) {
    const int size = exchange.size;
    if (call.m <= 16 && fits_one_shot<SmallTile<T>>(call, size))
        return run_one_shot<SmallTile<T>>(exchange, call, stream);
    if (fits_one_shot<MiddleTile<T>>(call, size)) return run_one_shot<MiddleTile<T>>(exchange, call, stream);
    using Tile = LargeTile<T>;
    const long long of_a_chunk = ceil_div(call.m, Tile::kM) * ceil_div(ceil_div(call.n, kChunkColumns), size);
    run<Tile, matmul_all_reduce_ring<Tile>>(exchange, call, Area::kMatmulRing, of_a_chunk, stream);
}

}  // namespace

void matmul_all_reduce(const Exchange& exchange, const MatmulCall& call, Stream stream) {
    if (call.m == 0 || call.n == 0) return;
    require(call.bias == nullptr && call.epilogue == Epilogue::none,
            "matmul_all_reduce takes no bias and no epilogue");
    if (call.type == DataType::bf16)
        run_type<__nv_bfloat16>(exchange, call, stream);
    else if (call.type == DataType::f16)
        run_type<__half>(exchange, call, stream);
    else
        require(false, "type must be bf16 or f16");
}

}  // namespace fastserve::cuda
