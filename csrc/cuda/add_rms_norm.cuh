// residual += x; out = residual / sqrt(mean(residual^2) + eps) * weight, row by row.
//
// x is a matrix here, or a sum that all_reduce_add_rms_norm finds in its slots: both end in
// add_and_normalise, which says every addition, its order and its roundings, so that all_reduce and
// add_rms_norm in turn have the bits of the fused kernel. A row's squares are added by thread, strided, then
// over the block: the order follows from d and from the number of threads, kNormThreads in both.
//
// The sum is rounded to T, stored, and it is the rounded one that is normalised: whoever reads the residual
// later sees what the norm saw. A thread reads again only what it has written itself.
// Source: Zhang & Sennrich 2019, eq. 4.
#pragma once

#include "elements.cuh"

namespace fastserve::cuda {

constexpr int kNormThreads = 512;

// One word of each warp of the block.
struct WarpSums {
    float warps[kNormThreads / 32];
};

template <typename T>
struct NormArgs {
    Rows<T> residual, out;
    const float* weight;  // [d]
    float eps;
};

// One row for each block.
template <typename T>
struct AddNormArgs {
    Rows<T> x;
    NormArgs<T> norm;  // out may be x
};

// The sum over the block's threads, for all of them, in an order that depends on their number alone.
__device__ __forceinline__ float sum_over_block(float value, WarpSums& sums) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    __syncthreads();  // the last call's sums have been read
    if (threadIdx.x % 32 == 0) sums.warps[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) sum += sums.warps[warp];
    return sum;
}

// By all threads of a block. load_x(vector, x): what is added to that vector of the row, values of T.
template <typename T, class LoadX>
__device__ __forceinline__ void add_and_normalise(const NormArgs<T>& args, int row, const LoadX& load_x,
                                                  WarpSums& sums) {
    const int d = args.residual.d, vectors = num_vectors<T>(d);
    float squares = 0;
    for (int v = threadIdx.x; v < vectors; v += blockDim.x) {
        float values[kPerVector<T>], x[kPerVector<T>];
        load_x(v, x);
        unpack<T>(args.residual.load(row, v), values);
#pragma unroll
        for (int e = 0; e < kPerVector<T>; ++e) values[e] += x[e];
        const uint4 bits = pack<T>(values);
        args.residual.store(row, v, bits);
        unpack<T>(bits, values);
#pragma unroll
        for (int e = 0; e < kPerVector<T>; ++e)  // fused by name: not as a compiler likes, here and there
            if (v * kPerVector<T> + e < d) squares = fmaf(values[e], values[e], squares);
    }
    const float scale = rsqrtf(sum_over_block(squares, sums) / static_cast<float>(d) + args.eps);
    for (int v = threadIdx.x; v < vectors; v += blockDim.x) {
        float values[kPerVector<T>];
        unpack<T>(args.residual.load(row, v), values);
#pragma unroll
        for (int e = 0; e < kPerVector<T>; ++e)
            values[e] =
                v * kPerVector<T> + e < d ? values[e] * scale * args.weight[v * kPerVector<T> + e] : 0;
        args.out.store(row, v, pack<T>(values));
    }
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads, 2) add_rms_norm(const AddNormArgs<T> args) {
    FS_DYN_SMEM(WarpSums, sums);
    const int row = static_cast<int>(blockIdx.x);
    const auto load_x = [&](int vector, float(&x)[kPerVector<T>]) { unpack<T>(args.x.load(row, vector), x); };
    add_and_normalise<T>(args.norm, row, load_x, *sums);
}

}  // namespace fastserve::cuda
