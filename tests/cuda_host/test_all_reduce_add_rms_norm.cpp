// all_reduce_add_rms_norm on emulated devices, against the sum in the order of the ring, the addition and the
// norm in turn.
#include "cuda/all_reduce_add_rms_norm.cuh"

#include <cstdio>

#include "check.h"
#include "devices.h"
#include "emulator.h"
#include "norm_case.h"

namespace fastserve::cuda {

namespace {

struct Case {
    int ranks, rows, d, blocks;
};

// Several calls on one residual, each checked in place: the residual bit by bit, the output within a
// rounding.
template <typename X, typename T, bool kTwoShot>
void check_case(const Case& c, int num_calls, uint64_t seed) {
    const long long half =
        kTwoShot ? two_shot_bytes<X>(c.rows, c.d, c.ranks) : one_shot_bytes<X>(c.rows, c.d, c.ranks);
    Devices devices(c.ranks, kAllReduceFlagBytes + 2 * half);
    const auto part = [](int call, int rank, int row, int column) {
        return rounded<X>(noise(call, rank, row, column));
    };
    const Memory weights = norm_weights(c.d);
    devices.run([&](int rank) {
        const Values<T> residual(c.rows, c.d), out(c.rows, c.d, 8);
        residual.fill([](int row, int column) { return noise(7, 7, row, column); });
        for (int call = 0; call < num_calls; ++call) {
            const Values<X> x(c.rows, c.d, call % 2);
            x.fill([&](int row, int column) { return part(call, rank, row, column); });
            Values<T> wanted(c.rows, c.d);
            wanted.fill([&](int row, int column) {
                const float sum =
                    sum_around_ring(c.ranks, column, c.d, [&](int r) { return part(call, r, row, column); });
                return to_float(residual.at(row, column)) + rounded<T>(rounded<X>(sum));
            });
            const AllReduceNormArgs<X, T> args = {{devices.peers(rank), x.rows(), {}, c.rows, half},
                                                  {residual.rows(), out.rows(), weights.as<float>(), kEps}};
            const cuda_host::Launch shape = {c.blocks,
                                             32,
                                             sizeof(NormShared),
                                             2,
                                             seed * 1000 + call * 10 + rank,
                                             "all_reduce_add_rms_norm"};
            cuda_host::launch(shape, [&] { all_reduce_add_rms_norm<X, T, kTwoShot>(args); });
            CHECK(num_wrong_in_norm(wanted, residual, out, c.rows, c.d) == 0);
        }
    });
}

}  // namespace

}  // namespace fastserve::cuda

int main(int argc, char** argv) {
    using namespace fastserve::cuda;
    const uint64_t seed = seed_of(argc, argv);
    check_case<__nv_bfloat16, __nv_bfloat16, true>({3, 3, 300, 2}, 3, seed);
    check_case<float, __nv_bfloat16, false>({3, 3, 300, 2}, 3, seed);
    if constexpr (!kQuick)
        for (int ranks = 2; ranks <= kMaxRanks; ++ranks) {
            check_case<__nv_bfloat16, __nv_bfloat16, false>({ranks, 5, 513, 2}, 3, seed);
            check_case<float, __nv_bfloat16, true>({ranks, 2, 1030, 3}, 3, seed);
            check_case<__half, __half, true>({ranks, 4, 7, 3}, 3, seed);
            check_case<float, float, false>({ranks, 1, 1, 1}, 3, seed);
            check_case<float, float, true>({ranks, 9, 576, 4}, 3, seed);
        }
    return failures() == 0 ? 0 : 1;
}
