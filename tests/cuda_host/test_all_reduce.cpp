// all_reduce on emulated devices: every strategy gives the sum in the order of the ring, and all ranks the
// same bits.
#include "cuda/all_reduce.cuh"

#include <cstdio>

#include "check.h"
#include "devices.h"
#include "emulator.h"

namespace fastserve::cuda {

namespace {

enum class Strategy { kOneShot, kTwoShot, kRing };
constexpr Strategy kStrategies[] = {Strategy::kOneShot, Strategy::kTwoShot, Strategy::kRing};

struct Case {
    Strategy strategy;
    int ranks, rows, d;
    int extra, offset;  // elements between rows, and before the first
    int blocks, threads;
};

long long area_bytes(const Case& c, long long half_bytes) {
    if (c.strategy == Strategy::kRing) return kRingFlagBytes + c.blocks * kRingSlots * kSlotBytes;
    return kAllReduceFlagBytes + 2 * half_bytes;
}

template <typename T>
long long half_bytes(const Case& c) {
    return c.strategy == Strategy::kOneShot ? one_shot_bytes<T>(c.rows, c.d, c.ranks)
                                            : two_shot_bytes<T>(c.rows, c.d, c.ranks);
}

template <typename T>
void run_kernel(const Case& c, const AllReduceArgs<T>& args, int blocks, uint64_t seed) {
    const cuda_host::Launch shape = {blocks, c.threads, sizeof(Lost), 2, seed, "all_reduce"};
    cuda_host::launch(shape, [&] {
        if (c.strategy == Strategy::kOneShot)
            all_reduce_one_shot<T>(args);
        else if (c.strategy == Strategy::kTwoShot)
            all_reduce_two_shot<T>(args);
        else
            all_reduce_ring<T>(args);
    });
}

// The sum as the essay of the kernels has it, one element at a time.
template <typename T>
T expected(const std::vector<Values<T>>& parts, const Case& c, int row, int column) {
    T sum;
    round_to(sum_around_ring(c.ranks, column, c.d,
                             [&](int rank) { return to_float(parts[rank].at(row, column)); }),
             sum);
    return sum;
}

// Several calls on one stream, of which every other is in place and has other numbers of blocks, on the same
// areas.
template <typename T>
void check_case(const Case& c, int num_calls, uint64_t seed) {
    const long long half = half_bytes<T>(c);
    Devices devices(c.ranks, area_bytes(c, half));
    std::vector<std::vector<Values<T>>> parts(num_calls), inputs(num_calls), outputs(num_calls);
    for (int call = 0; call < num_calls; ++call)
        for (int rank = 0; rank < c.ranks; ++rank) {
            for (auto* matrices : {&parts, &inputs, &outputs})
                (*matrices)[call].emplace_back(c.rows, c.d, c.extra, c.offset);
            const auto value = [&](int row, int column) { return noise(call, rank, row, column); };
            parts[call][rank].fill(value);
            inputs[call][rank].fill(value);
        }
    devices.run([&](int rank) {
        for (int call = 0; call < num_calls; ++call) {
            const bool in_place = call % 2 == 1;
            const Rows<T> x = inputs[call][rank].rows();
            const AllReduceArgs<T> args = {devices.peers(rank), x, in_place ? x : outputs[call][rank].rows(),
                                           c.rows, half};
            run_kernel(c, args, in_place && c.blocks > 1 ? c.blocks - 1 : c.blocks,
                       seed * 1000 + call * 10 + rank);
        }
    });
    int num_wrong = 0;
    for (int call = 0; call < num_calls; ++call)
        for (int rank = 0; rank < c.ranks; ++rank)
            for (int row = 0; row < c.rows; ++row)
                for (int column = 0; column < c.d; ++column) {
                    const T wanted = expected(parts[call], c, row, column);
                    const T got = (call % 2 == 1 ? inputs : outputs)[call][rank].at(row, column);
                    num_wrong += std::memcmp(&wanted, &got, sizeof(T)) != 0;
                }
    if (num_wrong > 0)
        std::printf("%d wrong: strategy %d, %d ranks, %d x %d, %zu bytes\n", num_wrong,
                    static_cast<int>(c.strategy), c.ranks, c.rows, c.d, sizeof(T));
    CHECK(num_wrong == 0);
}

void check_chunks() {
    for (int d : {1, 7, 128, 129, 576, 1000, 4096})
        for (int ranks = 2; ranks <= kMaxRanks; ++ranks)
            for (int column = 0; column < d; ++column) {
                const int c = chunk_of(column, ranks, d);
                CHECK(0 <= c && c < ranks);
                CHECK(chunk_begin(c, ranks, d) <= column && column < chunk_begin(c + 1, ranks, d));
            }
}

// One rank never comes: the epoch is raised, and the others' kernels end.
void check_lost_rank(Strategy strategy, uint64_t seed) {
    const Case c = {strategy, 3, 2, 1000, 0, 0, 2, 8};
    const long long half = half_bytes<float>(c);
    Devices devices(c.ranks, area_bytes(c, half));
    std::vector<Values<float>> x;
    for (int rank = 0; rank < c.ranks; ++rank) {
        x.emplace_back(c.rows, c.d);
        x.back().fill([](int, int) { return 1.0f; });
    }
    devices.run([&](int rank) {
        if (rank == 1)
            devices.raise_epoch();
        else
            run_kernel(
                c, AllReduceArgs<float>{devices.peers(rank), x[rank].rows(), x[rank].rows(), c.rows, half},
                c.blocks, seed);
    });
}

}  // namespace

}  // namespace fastserve::cuda

int main(int argc, char** argv) {
    using namespace fastserve::cuda;
    const uint64_t seed = seed_of(argc, argv);
    check_chunks();
    for (Strategy strategy : kStrategies) {
        check_lost_rank(strategy, seed);
        check_case<float>({strategy, 4, 1, 1029, 0, 0, 1, 8}, 3, seed);
        check_case<__nv_bfloat16>({strategy, 3, 3, 700, 0, 0, 2, 8}, 4, seed);
        if constexpr (kQuick) continue;
        for (int ranks = 2; ranks <= kMaxRanks; ++ranks) {
            for (int count : {1, 7, 4097})
                check_case<float>({strategy, ranks, 1, count, 0, 0, 3, 64}, 4, seed);
            check_case<__nv_bfloat16>({strategy, ranks, 5, 600, 8, 0, 4, 64}, 4, seed);
            check_case<__half>({strategy, ranks, 3, 257, 3, 1, 2, 32}, 4, seed);
        }
        check_case<__nv_bfloat16>({strategy, 3, 40, 2048, 0, 0, 2, 128}, 3, seed);  // several segments
    }
    return failures() == 0 ? 0 : 1;
}
