// Launches all_reduce: chooses among its strategies.
#include "all_reduce.cuh"

#include <algorithm>

#include "exchange_areas.cuh"
#include "runtime.cuh"

namespace fastserve::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int kMostBlocks = 36;  // one- and two-shot: more flags cost more than more threads bring

Strategy choose_all_reduce(long long one_shot, long long two_shot, int size) {
    if (goes_in_one_shot(one_shot, size)) return Strategy::kOneShot;
    return two_shot <= kAllReduceHalfBytes ? Strategy::kTwoShot : Strategy::kRing;
}

template <typename T>
void run(const Exchange& exchange, const AllReduceCall& call, Stream stream) {
    const auto rows_of = [&](const Matrix& matrix) {
        return Rows<T>{static_cast<T*>(matrix.data), matrix.ld, call.d, is_aligned(matrix, call.type)};
    };
    const Strategy strategy =
        choose_all_reduce(one_shot_bytes<T>(call.rows, call.d, exchange.size),
                          two_shot_bytes<T>(call.rows, call.d, exchange.size), exchange.size);
    const Peers peers = peers_in(exchange, strategy == Strategy::kRing ? Area::kRing : Area::kAllReduce);
    const AllReduceArgs<T> args = {peers, rows_of(call.x), rows_of(call.out), call.rows, kAllReduceHalfBytes};
    const long long vectors = static_cast<long long>(call.rows) * num_vectors<T>(call.d);
    const int blocks = static_cast<int>(std::min<long long>(ceil_div(vectors, kThreads), kMostBlocks));
    switch (strategy) {
        case Strategy::kOneShot:
            return launch<all_reduce_one_shot<T>>(blocks, kThreads, sizeof(Lost), args, stream);
        case Strategy::kTwoShot:
            return launch<all_reduce_two_shot<T>>(blocks, kThreads, sizeof(Lost), args, stream);
        case Strategy::kRing:
            return launch<all_reduce_ring<T>>(kRingBlocks, kThreads, sizeof(Lost), args, stream);
    }
}

}  // namespace

void all_reduce(const Exchange& exchange, const AllReduceCall& call, Stream stream) {
    if (call.rows == 0 || call.d == 0) return;
    // Items are counted in 32 bits.
    require(static_cast<long long>(call.rows) * call.d < (1LL << 31), "x must have fewer than 2^31 elements");
    switch (call.type) {
        case DataType::bf16:
            return run<__nv_bfloat16>(exchange, call, stream);
        case DataType::f16:
            return run<__half>(exchange, call, stream);
        case DataType::f32:
            return run<float>(exchange, call, stream);
        default:
            require(false, "type must be bf16, f16 or f32");
    }
}

int64_t exchange_bytes(int32_t size) {
    return area_offset(Area::kEnd, size);
}

int64_t triton_area_offset(int32_t size) {
    return area_offset(Area::kTriton, size);
}

}  // namespace fastserve::cuda
