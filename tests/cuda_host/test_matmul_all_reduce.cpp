// matmul_all_reduce on emulated devices: both strategies give the sum over all ranks, every rank the same
// bits, in call after call with other shapes and tiles on the same area.
#include "cuda/matmul_all_reduce.cuh"

#include <cstdio>

#include "check.h"
#include "emulator.h"
#include "product_case.h"

namespace fastserve::cuda {

namespace {

constexpr int kMaxRound = 4;  // blocks of any call below
constexpr long long kHalfBytes = 1 << 19;

struct Shape {
    int m, n, k;  // k: of one rank; ranks differ by one
    int blocks;
};

long long ring_area_bytes(int ranks) {
    return kMatmulRingFlagBytes + kMaxRound * matmul_ring_block_bytes(ranks);
}
long long one_shot_area_bytes() {
    return kMatmulOneShotFlagBytes + 2 * kHalfBytes;
}

template <class Tile, bool kRing>
void run_kernel(const MatmulAllReduceArgs<typename Tile::T>& args, int blocks, uint64_t seed) {
    const cuda_host::Launch shape = {blocks, Tile::kThreads, sizeof(MatmulShared<Tile>),
                                     2,      seed,           "matmul_all_reduce"};
    cuda_host::launch(shape, [&] {
        if constexpr (kRing)
            matmul_all_reduce_ring<Tile>(args);
        else
            matmul_all_reduce_one_shot<Tile>(args);
    });
}

// One product that all ranks make parts of.
template <typename T>
struct Call {
    Shape shape;
    std::vector<ProductCase<T>> parts;
    std::vector<Values<T>> outputs;

    Call(const Shape& s, int ranks) : shape(s) {
        for (int rank = 0; rank < ranks; ++rank) {
            parts.emplace_back(s.m, s.n, s.k + rank % 2, rank);
            outputs.emplace_back(s.m, s.n, s.k % 8);
        }
    }

    MatmulAllReduceArgs<T> args(const Devices& devices, int rank) const {
        const Rows<T> y = outputs[rank].rows();
        return {devices.peers(rank),
                parts[rank].operands(),
                {y.data, y.ld, shape.m, shape.n, false, y.aligned},
                kHalfBytes};
    }

    void check() const {
        const int ranks = static_cast<int>(parts.size());
        const auto exact = [&](int row, int column) {
            double sum = 0;
            for (const ProductCase<T>& part : parts) sum += part.exact(row, column);
            return sum;
        };
        check_close(outputs[0], shape.m, shape.n, exact, shape.k * ranks);
        for (const Values<T>& output : outputs) CHECK(same_bits(output, outputs[0]));
    }

    bool same_bits(const Values<T>& a, const Values<T>& b) const {
        bool same = true;
        for (int row = 0; row < shape.m; ++row)
            same = same && std::memcmp(&a.at(row, 0), &b.at(row, 0), shape.n * sizeof(T)) == 0;
        return same;
    }
};

// The shapes in turn, by two tiles in turn.
template <class First, class Second, bool kRing>
void check_calls(int ranks, const std::vector<Shape>& shapes, uint64_t seed) {
    using T = typename First::T;
    Devices devices(ranks, kRing ? ring_area_bytes(ranks) : one_shot_area_bytes());
    std::vector<Call<T>> calls;
    for (const Shape& shape : shapes) calls.emplace_back(shape, ranks);
    devices.run([&](int rank) {
        for (size_t i = 0; i < calls.size(); ++i) {
            const uint64_t order = seed * 1000 + i * 10 + rank;
            const auto args = calls[i].args(devices, rank);
            if (i % 2 == 0)
                run_kernel<First, kRing>(args, calls[i].shape.blocks, order);
            else
                run_kernel<Second, kRing>(args, calls[i].shape.blocks, order);
        }
    });
    for (const Call<T>& call : calls) call.check();
}

// A row alone, by the other strategy and another tile, has the bits that it has among others.
template <class Large, class Small>
void check_same_bits(int ranks, uint64_t seed) {
    using T = typename Large::T;
    const Shape shape = {130, 300, 100, 2};
    Devices rings(ranks, ring_area_bytes(ranks)), shots(ranks, one_shot_area_bytes());
    Call<T> all(shape, ranks), one({1, shape.n, shape.k, 3}, ranks);
    rings.run([&](int rank) { run_kernel<Large, true>(all.args(rings, rank), shape.blocks, seed + rank); });
    shots.run([&](int rank) {
        auto args = one.args(shots, rank);
        args.operands = all.parts[rank].operands();
        args.operands.x += 77 * args.operands.ldx;
        args.operands.m = 1;
        run_kernel<Small, false>(args, 3, seed + rank);
    });
    all.check();
    CHECK(std::memcmp(&one.outputs[0].at(0, 0), &all.outputs[0].at(77, 0), shape.n * sizeof(T)) == 0);
}

template <class Tile, bool kRing>
void check_lost_rank(uint64_t seed) {
    Devices devices(3, kRing ? ring_area_bytes(3) : one_shot_area_bytes());
    const Call<typename Tile::T> call({20, 300, 64, 2}, 3);
    devices.run([&](int rank) {
        if (rank == 1)
            devices.raise_epoch();
        else
            run_kernel<Tile, kRing>(call.args(devices, rank), 2, seed + rank);
    });
}

}  // namespace

}  // namespace fastserve::cuda

int main(int argc, char** argv) {
    using namespace fastserve::cuda;
    const uint64_t seed = seed_of(argc, argv);
    using Small = Tile<__nv_bfloat16, 16, 32, 3, 1, 1>;
    using Wide = Tile<__nv_bfloat16, 32, 64, 3, 1, 1>;
    // Five rounds of the ring on one block, then fewer tiles than blocks; two rounds, of which the second is
    // not full.
    check_calls<Small, Wide, true>(3, {{20, 300, 70, 1}, {20, 400, 8, 2}, {20, 384, 8, 3}}, seed);
    check_calls<Small, Small, false>(3, {{20, 100, 70, 3}, {1, 7, 64, 1}, {3, 200, 8, 2}, {9, 96, 20, 3}},
                                     seed);
    check_lost_rank<Small, true>(seed);
    check_lost_rank<Small, false>(seed);
    if constexpr (!kQuick) {
        using Middle = Tile<__nv_bfloat16, 64, 64, 4, 2, 2>;
        using Large = Tile<__nv_bfloat16, 128, 128, 3, 2, 4>;
        for (int ranks : {2, 3, 8}) {
            check_calls<Small, Middle, true>(ranks, {{1, 1, 1, 1}, {70, 1100, 70, 3}, {7, 1025, 33, 4}},
                                             seed);
            check_calls<Small, Middle, false>(ranks, {{1, 1, 1, 1}, {7, 129, 70, 2}, {16, 300, 33, 4}}, seed);
        }
        check_calls<Large, Middle, true>(4, {{200, 1030, 130, 2}, {129, 513, 64, 3}, {128, 512, 64, 1}},
                                         seed);
        check_same_bits<Large, Small>(3, seed);
        using Half = Tile<__half, 16, 64, 4, 1, 4>;
        check_calls<Half, Half, true>(5, {{17, 700, 100, 2}, {33, 257, 40, 2}}, seed);
    }
    return failures() == 0 ? 0 : 1;
}
