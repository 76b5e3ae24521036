// Launches all_reduce_add_rms_norm, as many rows at a time as the slots hold.
#include "all_reduce_add_rms_norm.cuh"

#include <algorithm>

#include "exchange_areas.cuh"
#include "runtime.cuh"

namespace fastserve::cuda {

namespace {

constexpr int kNormBlocks = 64;

template <typename X, typename T>
void run(const Exchange& exchange, const AllReduceNormCall& call, Stream stream) {
    const int d = call.d, size = exchange.size;
    const Peers peers = peers_in(exchange, Area::kAllReduce);
    const long long most = kAllReduceHalfBytes / two_shot_bytes<X>(1, d, size);
    require(most >= 1, "d must be at most a million");
    const auto rows_of = [&]<typename E>(const Matrix& matrix, DataType type, int first, E) {
        return Rows<E>{static_cast<E*>(matrix.data) + first * matrix.ld, matrix.ld, d,
                       is_aligned(matrix, type)};
    };
    for (int first = 0, rows; first < call.rows; first += rows) {
        rows = static_cast<int>(std::min<long long>(call.rows - first, most));
        const Rows<X> x = rows_of(call.x, call.x_type, first, X());
        const AllReduceNormArgs<X, T> args = {
            {peers, x, x, rows, kAllReduceHalfBytes},
            {rows_of(call.residual, call.type, first, T()), rows_of(call.out, call.type, first, T()),
             call.weight, call.eps}};
        const bool one_shot = goes_in_one_shot(one_shot_bytes<X>(rows, d, size), size);
        const int blocks = std::min(rows, kNormBlocks);
        if (one_shot)
            launch<all_reduce_add_rms_norm<X, T, false>>(blocks, kNormThreads, sizeof(NormShared), args,
                                                         stream);
        else
            launch<all_reduce_add_rms_norm<X, T, true>>(blocks, kNormThreads, sizeof(NormShared), args,
                                                        stream);
    }
}

}  // namespace

void all_reduce_add_rms_norm(const Exchange& exchange, const AllReduceNormCall& call, Stream stream) {
    if (call.rows == 0 || call.d == 0) return;
    const bool sums_fp32 = call.x_type == DataType::f32;
    require(sums_fp32 || call.x_type == call.type, "x must be fp32 or of residual's dtype");
    switch (call.type) {
        case DataType::bf16:
            return sums_fp32 ? run<float, __nv_bfloat16>(exchange, call, stream)
                             : run<__nv_bfloat16, __nv_bfloat16>(exchange, call, stream);
        case DataType::f16:
            return sums_fp32 ? run<float, __half>(exchange, call, stream)
                             : run<__half, __half>(exchange, call, stream);
        case DataType::f32:
            return run<float, float>(exchange, call, stream);
        default:
            require(false, "type must be bf16, f16 or f32");
    }
}

}  // namespace fastserve::cuda
