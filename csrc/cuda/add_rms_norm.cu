// Launches add_rms_norm.
#include "add_rms_norm.cuh"

#include "arguments.h"
#include "runtime.cuh"

namespace fastserve::cuda {

namespace {

template <typename T>
void run(const AddNormCall& call, Stream stream) {
    const auto rows_of = [&](const Matrix& matrix) {
        return Rows<T>{static_cast<T*>(matrix.data), matrix.ld, call.d, is_aligned(matrix, call.type)};
    };
    const AddNormArgs<T> args = {rows_of(call.x),
                                 {rows_of(call.residual), rows_of(call.out), call.weight, call.eps}};
    launch<add_rms_norm<T>>(call.rows, kNormThreads, sizeof(WarpSums), args, stream);
}

}  // namespace

void add_rms_norm(const AddNormCall& call, Stream stream) {
    if (call.rows == 0 || call.d == 0) return;
    switch (call.type) {
        case DataType::bf16:
            return run<__nv_bfloat16>(call, stream);
        case DataType::f16:
            return run<__half>(call, stream);
        case DataType::f32:
            return run<float>(call, stream);
        default:
            require(false, "type must be bf16, f16 or f32");
    }
}

}  // namespace fastserve::cuda
