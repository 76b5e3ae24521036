// residual += the sum of all ranks' x; out = residual / sqrt(mean(residual^2) + eps) * weight: the bits of
// all_reduce and add_rms_norm in turn, without writing the sum to memory and reading it again.
//
// The exchange is that of all_reduce, except that a block takes whole rows, since a row's mean needs all of
// it. Every rank keeps the residual and normalises all rows itself: that is the same work everywhere, and the
// link carries no more than the sums.
#pragma once

#include "add_rms_norm.cuh"
#include "all_reduce.cuh"

namespace fastserve::cuda {

// x is of type X: the partial sums of a matmul may come in fp32, and are then rounded to T but once.
template <typename X, typename T>
struct AllReduceNormArgs {
    AllReduceArgs<X> sum;  // sum.out is not used
    NormArgs<T> norm;
};

struct NormShared {
    Lost lost;
    WarpSums squares;
};

// Where the sum of a row's vectors is found once the ranks have met: in the slots of all ranks, or in their
// owners' chunks.
template <typename X, bool kTwoShot>
struct Sums {
    const AllReduceArgs<X>& args;
    const Call& call;

    __device__ __forceinline__ void load(int row, int vector, float (&sum)[kPerVector<X>]) const {
        const int d = args.x.d, size = args.peers.size, c = chunk_of(vector * kPerVector<X>, size, d);
        if constexpr (kTwoShot) {
            const int begin = chunk_begin(c, size, d),
                      width = num_vectors<X>(chunk_begin(c + 1, size, d) - begin);
            const long long item = static_cast<long long>(row) * width + vector - begin / kPerVector<X>;
            unpack<X>(ld_global_16(slot(args, call, args.peers.rank, gather_slot(args, c) + item)), sum);
        } else {
            const long long width = num_vectors<X>(d);
            sum_slots(args, call, row * width + vector, args.rows * width, c, sum);
            if constexpr (sizeof(X) == 2) unpack<X>(pack<X>(sum), sum);  // as all_reduce's out
        }
    }
};

// Vector by vector of T, which is one of X, or two.
template <typename X, typename T, bool kTwoShot>
__device__ __forceinline__ void load_sum(const Sums<X, kTwoShot>& sums, int row, int vector,
                                         float (&sum)[kPerVector<T>]) {
    constexpr int kParts = kPerVector<T> / kPerVector<X>;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
        float some[kPerVector<X>] = {};
        if ((vector * kParts + part) * kPerVector<X> < sums.args.x.d)
            sums.load(row, vector * kParts + part, some);
#pragma unroll
        for (int e = 0; e < kPerVector<X>; ++e) sum[part * kPerVector<X> + e] = some[e];
    }
    unpack<T>(pack<T>(sum), sum);
}

template <typename X, typename T, bool kTwoShot>
__global__ void __launch_bounds__(kNormThreads, 1)
    all_reduce_add_rms_norm(const AllReduceNormArgs<X, T> args) {
    FS_DYN_SMEM(NormShared, shared);
    shared->lost.clear();
    const Call call = begin_call(args.sum);
    const Items rows = items_of_block<true>(0, 1, args.sum.rows);
    if constexpr (kTwoShot) {
        if (!two_shot<X, true>(args.sum, call, shared->lost)) return;
    } else {
        push_to_all(args.sum, call, items_of_block<true>(0, num_vectors<X>(args.sum.x.d), args.sum.rows));
        if (!meet(args.sum, call, kScatter, shared->lost)) return;
    }
    const Sums<X, kTwoShot> sums = {args.sum, call};
    for (int row = rows.first; row < rows.last; ++row) {
        const auto load = [&](int vector, float(&sum)[kPerVector<T>]) {
            load_sum<X, T>(sums, row, vector, sum);
        };
        add_and_normalise<T>(args.norm, row, load, shared->squares);
    }
    end_call(args.sum, call);
}

}  // namespace fastserve::cuda
