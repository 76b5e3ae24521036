// add_rms_norm on emulated devices: alone against the addition and the norm in turn, and behind all_reduce
// against all_reduce_add_rms_norm, bit by bit.
#include "cuda/add_rms_norm.cuh"

#include <cstdio>
#include <cstring>

#include "check.h"
#include "cuda/all_reduce_add_rms_norm.cuh"
#include "devices.h"
#include "emulator.h"
#include "norm_case.h"

namespace fastserve::cuda {

namespace {

constexpr int kThreads = 64;  // of both norms: it is part of the bits

template <typename T>
float start_of_residual(int row, int column) {
    return rounded<T>(noise(7, 7, row, column));
}

template <typename T>
void normalise(const AddNormArgs<T>& args, int rows, uint64_t seed) {
    const cuda_host::Launch shape = {rows, kThreads, sizeof(WarpSums), 2, seed, "add_rms_norm"};
    cuda_host::launch(shape, [&] { add_rms_norm<T>(args); });
}

// offset: of x and out, in elements; rows of the residual are padded. Twice: into a matrix of its own, and
// over x.
template <typename T>
void check_alone(int rows, int d, int offset, uint64_t seed) {
    const Memory weights = norm_weights(d);
    for (const bool over_x : {false, true}) {
        const Values<T> x(rows, d, 0, offset), elsewhere(rows, d, 8, offset), residual(rows, d, 3),
            wanted(rows, d);
        const Values<T>& out = over_x ? x : elsewhere;
        x.fill([](int row, int column) { return noise(1, 1, row, column); });
        residual.fill(start_of_residual<T>);
        wanted.fill([&](int row, int column) {
            return start_of_residual<T>(row, column) + to_float(x.at(row, column));
        });
        normalise<T>({x.rows(), {residual.rows(), out.rows(), weights.as<float>(), kEps}}, rows, seed);
        CHECK(num_wrong_in_norm(wanted, residual, out, rows, d) == 0);
    }
}

struct Case {
    int ranks, rows, d, blocks;
};

template <typename T>
bool same_bits(const Values<T>& a, const Values<T>& b, const Case& c) {
    bool same = true;
    for (int row = 0; row < c.rows; ++row)
        same &= std::memcmp(&a.at(row, 0), &b.at(row, 0), sizeof(T) * c.d) == 0;
    return same;
}

// The sum's parts are of X.
template <typename X, typename T, bool kTwoShot>
void check_behind_sum(const Case& c, uint64_t seed) {
    const long long half =
        kTwoShot ? two_shot_bytes<X>(c.rows, c.d, c.ranks) : one_shot_bytes<X>(c.rows, c.d, c.ranks);
    Devices devices(c.ranks, kAllReduceFlagBytes + 2 * half);
    const Memory weights = norm_weights(c.d);
    devices.run([&](int rank) {
        const Values<X> x(c.rows, c.d, 1);
        const Values<T> fused(c.rows, c.d), fused_out(c.rows, c.d, 8), residual(c.rows, c.d, 1),
            sum(c.rows, c.d);
        x.fill([&](int row, int column) { return noise(2, rank, row, column); });
        for (const auto* values : {&fused, &residual}) values->fill(start_of_residual<T>);
        const auto launch = [&](int threads, size_t shared_bytes, int call, const auto& kernel) {
            const cuda_host::Launch shape = {
                c.blocks, threads, shared_bytes, 2, seed * 1000 + call * 10 + rank, "sum"};
            cuda_host::launch(shape, kernel);
        };
        const AllReduceNormArgs<X, T> at_once = {{devices.peers(rank), x.rows(), {}, c.rows, half},
                                                 {fused.rows(), fused_out.rows(), weights.as<float>(), kEps}};
        launch(kThreads, sizeof(NormShared), 0, [&] { all_reduce_add_rms_norm<X, T, kTwoShot>(at_once); });
        const AllReduceArgs<X> in_place = {devices.peers(rank), x.rows(), x.rows(), c.rows, half};
        launch(32, sizeof(Lost), 1, [&] {
            if constexpr (kTwoShot)
                all_reduce_two_shot<X>(in_place);
            else
                all_reduce_one_shot<X>(in_place);
        });
        sum.fill([&](int row, int column) { return to_float(x.at(row, column)); });
        normalise<T>({sum.rows(), {residual.rows(), sum.rows(), weights.as<float>(), kEps}}, c.rows,
                     seed * 1000 + 20 + rank);
        CHECK(same_bits(residual, fused, c));
        CHECK(same_bits(sum, fused_out, c));
    });
}

}  // namespace

}  // namespace fastserve::cuda

int main(int argc, char** argv) {
    using namespace fastserve::cuda;
    const uint64_t seed = seed_of(argc, argv);
    check_alone<__nv_bfloat16>(3, 1100, 0, seed);
    check_alone<__nv_bfloat16>(2, 75, 1, seed);
    check_behind_sum<float, __nv_bfloat16, true>({3, 3, 1100, 2}, seed);
    if constexpr (!kQuick) {
        for (int d : {1, 7, 64, 513, 4104}) {
            check_alone<__nv_bfloat16>(2, d, 0, seed);
            check_alone<__half>(3, d, 5, seed);
            check_alone<float>(2, d, 0, seed);
        }
        for (int ranks = 2; ranks <= kMaxRanks; ++ranks) {
            check_behind_sum<__nv_bfloat16, __nv_bfloat16, false>({ranks, 5, 513, 2}, seed);
            check_behind_sum<float, __nv_bfloat16, true>({ranks, 2, 1030, 3}, seed);
            check_behind_sum<__half, __half, true>({ranks, 4, 7, 3}, seed);
            check_behind_sum<float, __half, false>({ranks, 3, 576, 2}, seed);
            check_behind_sum<float, float, false>({ranks, 1, 1, 1}, seed);
            check_behind_sum<float, float, true>({ranks, 9, 577, 4}, seed);
        }
    }
    return failures() == 0 ? 0 : 1;
}
