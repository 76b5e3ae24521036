// The CUDA ops as the host calls them: addresses in device memory, sizes, row strides in elements, and a
// stream (cudaStream_t as a plain pointer). Everything is enqueued on the current device and nothing is
// awaited; a call is legal while a CUDA graph is being captured. Needs no header of CUDA.
//
// Throws std::invalid_argument naming what is wrong, std::runtime_error with CUDA's own words.
#pragma once

#include <cstdint>

#include "ops.h"

namespace fastserve::cuda {

using Stream = void*;

constexpr int32_t kMaxExchangeRanks = 8;  // GPUs of one host that see each other's memory

// The exchange buffers of a group's ranks, as this rank addresses them (exchange_buffer.h).
struct Exchange {
    int32_t rank, size;
    void* buffers[kMaxExchangeRanks];
    const uint32_t* epoch;
    uint32_t current_epoch;
};

// A matrix whose rows are contiguous.
struct Matrix {
    void* data;
    int64_t ld;
};

// out = the ranks' sum of x [rows, d], in place or not. type: bf16, f16 or f32.
struct AllReduceCall {
    Matrix x, out;
    int32_t rows, d;
    DataType type;
};
void all_reduce(const Exchange& exchange, const AllReduceCall& call, Stream stream);

// residual += x; out = residual / rms(residual) * weight. out may be x. type: bf16, f16 or f32.
struct AddNormCall {
    Matrix x, residual, out;
    const float* weight;  // [d]
    float eps;
    int32_t rows, d;
    DataType type;
};
void add_rms_norm(const AddNormCall& call, Stream stream);

// residual += the ranks' sum of x; out = residual / rms(residual) * weight: the bits of all_reduce, then
// add_rms_norm. x is of type `x_type`: as residual and out, or f32.
struct AllReduceNormCall {
    Matrix x, residual, out;
    const float* weight;  // [d]
    float eps;
    int32_t rows, d;
    DataType x_type, type;
};
void all_reduce_add_rms_norm(const Exchange& exchange, const AllReduceNormCall& call, Stream stream);

enum class Epilogue : int32_t { none, silu, gelu_tanh, relu, silu_mul };

// y [m, n] = epilogue(x [m, k] w [n, k]^T + bias); with silu_mul w is [gate | up], [2 n, k], and there is no
// bias. type: bf16 or f16; x, w and their strides are multiples of 16 bytes, rows of both at least k rounded
// up to 8 long. y: of `type`, or f32.
struct MatmulCall {
    Matrix x, w, y;
    const float* bias;  // [n], null: none
    int32_t m, n, k;
    DataType type, y_type;
    Epilogue epilogue;
};
void matmul(const MatmulCall& call, Stream stream);

// y = the ranks' sum of x w^T. bias and epilogue: none.
void matmul_all_reduce(const Exchange& exchange, const MatmulCall& call, Stream stream);

// to[to_blocks[i]] = from[from_blocks[i]] for i < num_blocks, blocks of block_bytes, a multiple of 16. Either
// side may be pinned memory of the host; the lists lie where the device can read them. No block is written
// twice.
struct SwapCall {
    const void* from;
    void* to;
    const int32_t* from_blocks;
    const int32_t* to_blocks;
    int32_t num_blocks;
    int64_t block_bytes;
};
void swap(const SwapCall& call, Stream stream);

// Bytes of every rank's exchange buffer: what the ops above use, one area after another.
int64_t exchange_bytes(int32_t size);

// Where in an exchange buffer the Triton kernels' area begins: they lay it out
// (kernels/matmul_all_reduce.py). Slots of two calls, of 16 MB each, and flags.
constexpr int64_t kTritonAreaBytes = 33 << 20;
int64_t triton_area_offset(int32_t size);

}  // namespace fastserve::cuda
