// matmul_all_reduce on emulated devices: every strategy and tile gives the bits of matmul and all_reduce in
// turn, in call after call with other shapes, tiles and strategies on the same area.
#include <cstdio>

#include "check.h"
#include "cuda/all_reduce.cuh"
#include "cuda/matmul.cuh"
#include "cuda/matmul_all_reduce_one_shot.cuh"
#include "cuda/matmul_all_reduce_ring.cuh"
#include "cuda/matmul_all_reduce_two_shot.cuh"
#include "emulator.h"
#include "product_case.h"

namespace fastserve::cuda {

namespace {

enum class Strategy { kOneShot, kTwoShot, kRing };
constexpr Strategy kStrategies[] = {Strategy::kOneShot, Strategy::kTwoShot, Strategy::kRing};

constexpr int kMostBlocks = 4;  // of any call below
constexpr int kResident = 2;
constexpr long long kHalfBytes = 3 << 19;
constexpr long long kShotAreaBytes = kMatmulShotFlagBytes + 2 * kHalfBytes;

long long area_bytes(int ranks) {
    return kShotAreaBytes + kMatmulRingFlagBytes + kMostBlocks * matmul_ring_block_bytes(ranks);
}

struct Case {
    Strategy strategy;
    int tile;     // 0 or 1: the first or the second of those that a test has
    int m, n, k;  // k: of one rank; ranks differ by one
    int blocks;
};

template <class Tile>
void run_kernel(const Case& c, const MatmulAllReduceArgs<typename Tile::T>& args, uint64_t seed) {
    const cuda_host::Launch shape = {c.blocks,  Tile::kThreads, sizeof(MatmulShared<Tile>),
                                     kResident, seed,           "matmul_all_reduce"};
    cuda_host::launch(shape, [&] {
        if (c.strategy == Strategy::kOneShot)
            matmul_all_reduce_one_shot<Tile>(args);
        else if (c.strategy == Strategy::kTwoShot)
            matmul_all_reduce_two_shot<Tile>(args);
        else
            matmul_all_reduce_ring<Tile>(args);
    });
}

template <class Tile>
bool fits(const Case& c, int ranks) {
    const int num_rows = (c.m + Tile::kM - 1) / Tile::kM,
              num_tiles = num_rows * ((c.n + Tile::kN - 1) / Tile::kN);
    if (c.strategy == Strategy::kRing) return true;
    return c.blocks <= num_tiles && kHalfBytes >= (c.strategy == Strategy::kOneShot
                                                       ? matmul_one_shot_bytes<Tile>(num_tiles, ranks)
                                                       : matmul_two_shot_bytes<Tile>(num_rows, c.n, ranks));
}

// One product that all ranks make parts of.
template <typename T>
struct Call {
    Case shape;
    std::vector<ProductCase<T>> parts;
    std::vector<Values<T>> outputs;

    Call(const Case& c, int ranks) : shape(c) {
        for (int rank = 0; rank < ranks; ++rank) {
            parts.emplace_back(c.m, c.n, c.k + rank % 2, rank);
            outputs.emplace_back(c.m, c.n, c.k % 8);
        }
    }

    MatmulAllReduceArgs<T> args(const Devices& devices, int rank) const {
        Peers peers = devices.peers(rank);
        if (shape.strategy == Strategy::kRing)
            for (int r = 0; r < peers.size; ++r) peers.areas[r] += kShotAreaBytes;
        return {peers, parts[rank].operands(), outputs[rank].rows(), kHalfBytes};
    }
};

// matmul on every rank, then all_reduce: the outputs of one rank, as all_reduce's own test has them alike.
template <class Tile, typename T>
Values<T> in_turn(const Call<T>& call, uint64_t seed) {
    const int ranks = static_cast<int>(call.parts.size()), m = call.shape.m, n = call.shape.n;
    const long long half = one_shot_bytes<T>(m, n, ranks);
    Devices devices(ranks, kAllReduceFlagBytes + 2 * half);
    std::vector<Values<T>> sums;
    for (int rank = 0; rank < ranks; ++rank) sums.emplace_back(m, n);
    devices.run([&](int rank) {
        const Rows<T> y = sums[rank].rows();
        const MatmulArgs<T> product = {
            call.parts[rank].operands(), nullptr, Activation::kNone, {y.data, y.ld, m, n, false, y.aligned}};
        cuda_host::launch({1, Tile::kThreads, sizeof(TileShared<Tile>), kResident, seed, "matmul"},
                          [&] { matmul<Tile, PlainColumns>(product); });
        const AllReduceArgs<T> sum = {devices.peers(rank), y, y, m, half};
        cuda_host::launch({1, 16, sizeof(Lost), kResident, seed, "all_reduce"},
                          [&] { all_reduce_one_shot<T>(sum); });
    });
    return std::move(sums[0]);
}

template <typename T>
bool same_bits(const Values<T>& a, const Values<T>& b, int m, int n) {
    for (int row = 0; row < m; ++row)
        if (std::memcmp(&a.at(row, 0), &b.at(row, 0), n * sizeof(T)) != 0) return false;
    return true;
}

// The cases in turn.
template <class First, class Second>
void check_calls(int ranks, const std::vector<Case>& cases, uint64_t seed) {
    using T = typename First::T;
    Devices devices(ranks, area_bytes(ranks));
    std::vector<Call<T>> calls;
    for (const Case& c : cases) {
        CHECK(c.tile == 0 ? fits<First>(c, ranks) : fits<Second>(c, ranks));
        calls.emplace_back(c, ranks);
    }
    devices.run([&](int rank) {
        for (size_t i = 0; i < calls.size(); ++i) {
            const uint64_t order = seed * 1000 + i * 10 + rank;
            const auto args = calls[i].args(devices, rank);
            if (calls[i].shape.tile == 0)
                run_kernel<First>(calls[i].shape, args, order);
            else
                run_kernel<Second>(calls[i].shape, args, order);
        }
    });
    for (const Call<T>& call : calls) {
        const Values<T> wanted = in_turn<First>(call, seed);
        int num_wrong = 0;
        for (const Values<T>& output : call.outputs)
            num_wrong += !same_bits(output, wanted, call.shape.m, call.shape.n);
        if (num_wrong > 0)
            std::printf("%d ranks wrong of %d: strategy %d, tile %d, %d x %d x %d\n", num_wrong, ranks,
                        static_cast<int>(call.shape.strategy), call.shape.tile, call.shape.m, call.shape.n,
                        call.shape.k);
        CHECK(num_wrong == 0);
    }
}

// One rank never comes: the epoch is raised, and the others' kernels end.
template <class Tile>
void check_lost_rank(Strategy strategy, uint64_t seed) {
    Devices devices(3, area_bytes(3));
    const Call<typename Tile::T> call({strategy, 0, 20, 300, 64, 2}, 3);
    devices.run([&](int rank) {
        if (rank == 1)
            devices.raise_epoch();
        else
            run_kernel<Tile>(call.shape, call.args(devices, rank), seed + rank);
    });
}

// Shapes and strategies mixed: a row alone, columns that leave chunks and tiles unfilled or without an
// owner's part, fewer tiles than a device runs at once and more.
template <class First, class Second>
void check_mixed(int ranks, uint64_t seed) {
    using enum Strategy;
    check_calls<First, Second>(ranks,
                               {{kTwoShot, 0, 1, 1, 1, 1},
                                {kTwoShot, 0, 17, 1030, 24, 4},
                                {kOneShot, 0, 9, 129, 70, 3},
                                {kTwoShot, 1, 1, 530, 9, 3},
                                {kRing, 0, 7, 1025, 33, 4},
                                {kOneShot, 1, 1, 300, 8, 2},
                                {kRing, 1, 18, 260, 40, 2},
                                {kTwoShot, 0, 17, 260, 40, 2}},
                               seed);
}

}  // namespace

}  // namespace fastserve::cuda

int main(int argc, char** argv) {
    using namespace fastserve::cuda;
    using enum Strategy;
    const uint64_t seed = seed_of(argc, argv);
    using Small = Tile<__nv_bfloat16, 16, 32, 3, 1, 1>;
    using Wide = Tile<__nv_bfloat16, 32, 64, 3, 1, 1>;
    for (Strategy strategy : kStrategies) check_lost_rank<Small>(strategy, seed);
    // By the ring: four rounds on one block, then fewer tiles than blocks; two rounds, of which the second is
    // not full. In shots: parts and sums where the call before the last had the other, and more blocks than
    // the call before.
    check_calls<Small, Wide>(3,
                             {{kRing, 0, 9, 300, 20, 1},
                              {kRing, 1, 20, 400, 8, 2},
                              {kRing, 0, 9, 384, 8, 3},
                              {kOneShot, 0, 1, 7, 64, 1},
                              {kOneShot, 0, 3, 200, 8, 2},
                              {kTwoShot, 0, 9, 96, 20, 3},
                              {kTwoShot, 0, 20, 300, 70, 2},
                              {kTwoShot, 1, 5, 400, 8, 3},
                              {kTwoShot, 0, 9, 390, 8, 1}},
                             seed);
    if constexpr (!kQuick) {
        using Middle = Tile<__nv_bfloat16, 64, 64, 4, 2, 2>;
        using Large = Tile<__nv_bfloat16, 128, 128, 3, 2, 4>;
        using Half = Tile<__half, 16, 64, 4, 1, 4>;
        for (int ranks = 2 + seed % 2; ranks <= kMaxRanks; ranks += 2)  // all of them in two seeds
            if (ranks / 2 % 2 == 0)
                check_mixed<Small, Middle>(ranks, seed);
            else
                check_mixed<Half, Half>(ranks, seed);
        check_calls<Large, Middle>(4,
                                   {{kTwoShot, 0, 130, 515, 66, 2},
                                    {kRing, 1, 129, 513, 24, 3},
                                    {kRing, 0, 128, 512, 64, 1},
                                    {kTwoShot, 1, 100, 500, 30, 3}},
                                   seed);
    }
    return failures() == 0 ? 0 : 1;
}
