// The main loop of the matmuls: one block computes a tile of x w^T on tensor cores.
//
// x is [M, K] and w [N, K], both by rows, which is what mma.sync wants of its operands. Slices of kSliceK
// columns of both pass through a ring of stages in shared memory, filled by cp.async while earlier slices are
// multiplied. A row of a slice is 128 bytes; its 16-byte pieces are permuted by the row's number, so that the
// eight rows that ldmatrix reads at once lie in different banks.
//
// Every output element is summed over K in the same order, 16 at a time, by the same instruction, whatever
// the tile: a row has the same bits however many rows there are. K is never split.
#pragma once

#include "elements.cuh"

namespace fastserve::cuda {

constexpr int kSliceK = 64;
constexpr int kPieces = kSliceK / 8;  // of 16 bytes, in a row of a slice

// kM x kN outputs by kWarpsM x kWarpsN warps, kStages slices in flight.
template <typename T_, int kM_, int kN_, int kStages_, int kWarpsM, int kWarpsN>
struct Tile {
    using T = T_;
    static constexpr int kM = kM_, kN = kN_, kStages = kStages_;
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
    static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;  // of one warp
    static constexpr int kFragmentsM = kWarpM / 16, kFragmentsN = kWarpN / 8;
    static constexpr int kStageBytes = (kM + kN) * kSliceK * 2;
    static constexpr int kSharedBytes = kStages * kStageBytes;
    static constexpr int kBytes = kM * kN * 2;  // of a finished tile, rounded
    static_assert(sizeof(T) == 2 && kFragmentsM >= 1 && kFragmentsN % 2 == 0);

    __device__ static int warp_row() { return static_cast<int>(threadIdx.x) / 32 / kWarpsN * kWarpM; }
    __device__ static int warp_column() { return static_cast<int>(threadIdx.x) / 32 % kWarpsN * kWarpN; }
    // Of element e of fragment (i, j) in the tile.
    __device__ static int row(int i, int e) {
        return warp_row() + i * 16 + static_cast<int>(threadIdx.x) % 32 / 4 + e / 2 * 8;
    }
    __device__ static int column(int j, int e) {
        return warp_column() + j * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2;
    }
};

template <class Tile>
using Accumulators = float[Tile::kFragmentsM][Tile::kFragmentsN][4];

// Data and row strides are multiples of 16 bytes; where K is no multiple of 8, rows are at least so long.
template <typename T>
struct Operands {
    const T* x;
    long long ldx;
    const T* w;
    long long ldw;
    int m, n, k;
};

// Which rows of w a tile's columns are; -1: none.
struct PlainColumns {
    static constexpr bool kGated = false;
    int begin, n;
    __device__ __forceinline__ int row_of(int column) const {
        return begin + column < n ? begin + column : -1;
    }
};

// w is [gate | up], 2 F rows: groups of eight columns are of the gate and of up in turn, so that the same
// thread gets both.
struct GateUpColumns {
    static constexpr bool kGated = true;
    int begin, f;  // of the output's columns
    __device__ __forceinline__ int row_of(int column) const {
        const int output = begin + column / 16 * 8 + column % 8;
        return output >= f ? -1 : column / 8 % 2 == 0 ? output : f + output;
    }
};

struct RowsOfX {
    int begin, m;
    __device__ __forceinline__ int row_of(int row) const { return begin + row < m ? begin + row : -1; }
};

// Where piece `piece` of row `row` lies in a slice.
__device__ __forceinline__ unsigned char* piece_of(unsigned char* slice, int row, int piece) {
    return slice + (row * kPieces + (piece ^ row % kPieces)) * 16;
}

// The first `valid` of a word's two elements.
__device__ __forceinline__ uint32_t mask_of(int valid) {
    return valid >= 2 ? 0xffffffffu : valid == 1 ? 0xffffu : 0;
}

// Zeros beyond the edge.
template <class Tile, int kRows, class RowMap>
__device__ __forceinline__ void load_slice(unsigned char* slice, const typename Tile::T* data, long long ld,
                                           int num_columns, int first_column, const RowMap& map) {
    using T = typename Tile::T;
#pragma unroll
    for (int i = threadIdx.x; i < kRows * kPieces; i += Tile::kThreads) {
        const int row = map.row_of(i / kPieces), column = first_column + i % kPieces * 8;
        unsigned char* to = piece_of(slice, i / kPieces, i % kPieces);
        const T* from = data + row * ld + column;
        if (row >= 0 && column + 8 <= num_columns) {
            cp_async_16(to, from);
        } else {
            const int valid = row >= 0 ? num_columns - column : 0;
            const uint4 bits = valid > 0 ? ld_global_16(from) : uint4{};
            *reinterpret_cast<uint4*>(to) = {bits.x & mask_of(valid), bits.y & mask_of(valid - 2),
                                             bits.z & mask_of(valid - 4), bits.w & mask_of(valid - 6)};
        }
    }
}

__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                         __nv_bfloat16) {
    mma_bf16_m16n8k16(d, a, b);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                         __half) {
    mma_fp16_m16n8k16(d, a, b);
}

template <class Tile>
__device__ __forceinline__ void multiply_slice(unsigned char* x, unsigned char* w, Accumulators<Tile>& sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int k = 0; k < kSliceK / 16; ++k) {
        uint32_t a[Tile::kFragmentsM][4], b[Tile::kFragmentsN][2];
#pragma unroll
        for (int i = 0; i < Tile::kFragmentsM; ++i)
            ldmatrix_x4(a[i], piece_of(x, Tile::warp_row() + i * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (int j = 0; j < Tile::kFragmentsN; j += 2) {
            uint32_t pair[4];
            const int row = Tile::warp_column() + j * 8 + lane / 16 * 8 + lane % 8;
            ldmatrix_x4(pair, piece_of(w, row, k * 2 + lane / 8 % 2));
            b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
        }
#pragma unroll
        for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
            for (int j = 0; j < Tile::kFragmentsN; ++j) multiply(sums[i][j], a[i], b[j], typename Tile::T());
    }
}

// One tile: begin() sets its first slices on their way, run() multiplies. begin() of the next tile may come
// before whatever is done with the sums of this one.
template <class Tile, class Columns>
struct Product {
    const Operands<typename Tile::T>& operands;
    unsigned char* shared;
    RowsOfX rows;
    Columns columns;

    __device__ __forceinline__ int num_slices() const { return (operands.k + kSliceK - 1) / kSliceK; }

    __device__ __forceinline__ unsigned char* stage(int slice) const {
        return shared + slice % Tile::kStages * Tile::kStageBytes;
    }

    __device__ __forceinline__ void load(int slice) const {
        if (slice < num_slices()) {
            load_slice<Tile, Tile::kM>(stage(slice), operands.x, operands.ldx, operands.k, slice * kSliceK,
                                       rows);
            load_slice<Tile, Tile::kN>(stage(slice) + Tile::kM * kSliceK * 2, operands.w, operands.ldw,
                                       operands.k, slice * kSliceK, columns);
        }
        cp_async_commit();  // of nothing at the end: the waits count groups
    }

    // No thread may still be reading the stages.
    __device__ __forceinline__ void begin() const {
#pragma unroll 1
        for (int slice = 0; slice < Tile::kStages - 1; ++slice) load(slice);
    }

    // All threads are done with the stages when it returns.
    __device__ __forceinline__ void run(Accumulators<Tile>& sums) const {
#pragma unroll
        for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
            for (int j = 0; j < Tile::kFragmentsN; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
        for (int slice = 0; slice < num_slices(); ++slice) {
            cp_async_wait<Tile::kStages - 2>();
            __syncthreads();  // everybody's copies have come, and everybody is done with the stage that is
                              // filled next
            load(slice + Tile::kStages - 1);
            multiply_slice<Tile>(stage(slice), stage(slice) + Tile::kM * kSliceK * 2, sums);
        }
        __syncthreads();
    }
};

// --- what is done with the sums ---

// A tile of sums in shared memory, between the threads that computed them and rows of the output. Groups of
// eight columns are permuted by the row, so that what a half-warp writes at once lies in different banks.
template <class Tile>
struct StagedSums {
    float* values;

    __device__ __forceinline__ float* at(int row, int column) const {
        return values + row * Tile::kN + (column ^ row % 4 * 8);
    }

    __device__ __forceinline__ void put(int i, int j, const float (&sums)[4]) const {
#pragma unroll
        for (int e = 0; e < 4; e += 2)
            *reinterpret_cast<float2*>(at(Tile::row(i, e), Tile::column(j, 0))) =
                make_float2(sums[e], sums[e + 1]);
    }

    __device__ __forceinline__ void put(const Accumulators<Tile>& sums) const {
#pragma unroll
        for (int i = 0; i < Tile::kFragmentsM; ++i)
#pragma unroll
            for (int j = 0; j < Tile::kFragmentsN; ++j) put(i, j, sums[i][j]);
    }

    // Fragments (i, j) and (i, j + 1), of which a thread gets what it has put itself.
    __device__ __forceinline__ void put_pair(int i, int j, const float (&pair)[8]) const {
        put(i, j, {pair[0], pair[1], pair[2], pair[3]});
        put(i, j + 1, {pair[4], pair[5], pair[6], pair[7]});
    }

    __device__ __forceinline__ void get_pair(int i, int j, float (&pair)[8]) const {
#pragma unroll
        for (int e = 0; e < 8; e += 2) {
            const float2 two =
                *reinterpret_cast<const float2*>(at(Tile::row(i, e % 4), Tile::column(j + e / 4, 0)));
            pair[e] = two.x, pair[e + 1] = two.y;
        }
    }

    // Columns column..column + 7, column a multiple of eight.
    __device__ __forceinline__ void get(int row, int column, float (&eight)[8]) const {
        const float4* from = reinterpret_cast<const float4*>(at(row, column));
        const float4 low = from[0], high = from[1];
        eight[0] = low.x, eight[1] = low.y, eight[2] = low.z, eight[3] = low.w;
        eight[4] = high.x, eight[5] = high.y, eight[6] = high.z, eight[7] = high.w;
    }
};

// y [m, n], of T or of fp32.
template <typename T>
struct Output {
    void* y;
    long long ld;
    int m, n;
    bool fp32;
    bool aligned;  // y and rows: multiples of 16 bytes

    __device__ __forceinline__ void store(int row, int column, const float (&eight)[8]) const {
        if (fp32)
            store_as<float>(row, column, eight);
        else
            store_as<T>(row, column, eight);
    }

    template <typename O>
    __device__ __forceinline__ void store_as(int row, int column, const float (&eight)[8]) const {
        const Rows<O> rows = {static_cast<O*>(y), ld, n, aligned};
#pragma unroll
        for (int part = 0; part < 8; part += kPerVector<O>) {
            float values[kPerVector<O>];
#pragma unroll
            for (int e = 0; e < kPerVector<O>; ++e) values[e] = eight[part + e];
            rows.store(row, (column + part) / kPerVector<O>, pack<O>(values));
        }
    }
};

// Stores the staged tile whose first element is (row, column) of the output, eight columns at a time, after
// `finish` has had them. kColumns of the output: a tile's own, or half of them where gate and up become one.
// By all threads, who meet first; they must meet again before the next tile is staged.
template <class Tile, int kColumns, typename T, class Finish>
__device__ __forceinline__ void store_staged(const Output<T>& output, int row, int column,
                                             const Finish& finish) {
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < Tile::kM * kColumns / 8; i += Tile::kThreads) {
        const int r = i / (kColumns / 8), c = i % (kColumns / 8) * 8;
        if (row + r >= output.m || column + c >= output.n) continue;
        float eight[8];
        finish(r, c, eight);
        output.store(row + r, column + c, eight);
    }
}

template <class Tile, typename T>
__device__ __forceinline__ void store_staged(const StagedSums<Tile>& staged, const Output<T>& output, int row,
                                             int column) {
    store_staged<Tile, Tile::kN>(output, row, column,
                                 [&](int r, int c, float(&eight)[8]) { staged.get(r, c, eight); });
}

// What a block has in shared memory.
template <class Tile>
struct TileShared {
    unsigned char stages[Tile::kSharedBytes];
    float sums[Tile::kM * Tile::kN];
};

}  // namespace fastserve::cuda
