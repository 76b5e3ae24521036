// The emulator itself: what kernels may rely on works, what they may not is seen. Without an argument the
// first; with one, a kernel that is wrong in the way named, which the emulator must end with a message.
#include "emulator.h"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <string>

#include "check.h"
#include "devices.h"

namespace fastserve::cuda {

namespace {

void run(int blocks, int threads, int resident, size_t shared_bytes, const std::function<void()>& kernel,
         uint64_t seed = 1) {
    cuda_host::launch({blocks, threads, shared_bytes, resident, seed, "kernel"}, kernel);
}

void threads_have_their_indices() {
    std::vector<int> seen(6 * 40);
    run(6, 40, 2, 0, [&] { ++seen[blockIdx.x * blockDim.x + threadIdx.x]; });
    for (int count : seen) CHECK(count == 1);
}

void shared_memory_begins_as_nan() {
    std::vector<float> seen(4);
    run(4, 1, 2, 16, [&] {
        FS_DYN_SMEM(float, shared);
        seen[blockIdx.x] = shared[3];
        shared[3] = 1;
    });
    for (float value : seen) CHECK(std::isnan(value));
}

void a_barrier_lets_all_see_what_was_written() {
    for (uint64_t seed = 1; seed < 20; ++seed) {
        std::atomic<int> num_wrong = 0;
        run(
            1, 64, 1, 64 * sizeof(int),
            [&] {
                FS_DYN_SMEM(int, shared);
                for (int round = 0; round < 5; ++round) {
                    shared[threadIdx.x] = round;
                    __syncthreads();
                    for (int i = 0; i < 64; ++i) num_wrong += shared[i] != round;
                    __syncthreads();
                }
            },
            seed);
        CHECK(num_wrong == 0);
    }
}

// Which order fibers run in is the seed's.
void the_seed_shuffles_threads() {
    const auto order = [](uint64_t seed) {
        std::vector<int> turns(16);
        std::atomic<int> turn = 0;
        run(1, 16, 1, 0, [&] { turns[threadIdx.x] = turn.fetch_add(1, std::memory_order_relaxed); }, seed);
        return turns;
    };
    CHECK(order(1) == order(1));
    CHECK(order(1) != order(2));
}

void shuffles_exchange_within_a_warp() {
    std::atomic<int> num_wrong = 0;
    run(1, 64, 1, 0, [&] {
        const int thread = static_cast<int>(threadIdx.x);
        num_wrong += __shfl_xor_sync(~0u, thread, 5) != (thread ^ 5);
        num_wrong += __shfl_sync(~0u, thread, 3) != thread / 32 * 32 + 3;
    });
    CHECK(num_wrong == 0);
}

void a_copy_comes_at_its_wait() {
    const Memory from(32, 1);
    run(1, 1, 1, 32, [&] {
        FS_DYN_SMEM(unsigned char, shared);
        cp_async_16(shared, from.get());
        cp_async_commit();
        cp_async_16(shared + 16, from.get() + 16);
        cp_async_commit();
        CHECK(shared[0] == 0xff && shared[16] == 0xff);
        cp_async_wait<1>();
        CHECK(shared[0] == 1 && shared[16] == 0xff);
        cp_async_wait<0>();
        CHECK(shared[16] == 1);
    });
}

// a [16, 16] and b [8, 16] lie by rows in shared memory; ldmatrix makes fragments of them, and mma the
// product.
template <typename T>
void fragments_make_products() {
    float got[16][8] = {};
    const auto a = [](int row, int k) { return static_cast<float>(row * 3 % 7 - k % 5); };
    const auto b = [](int column, int k) { return static_cast<float>(column - k * 2 % 9); };
    run(1, 32, 1, 2 * 32 * 16 * sizeof(T), [&] {
        FS_DYN_SMEM(T, shared);
        const int lane = static_cast<int>(threadIdx.x);
        if (lane == 0)
            for (int k = 0; k < 16; ++k) {
                for (int row = 0; row < 16; ++row) round_to(a(row, k), shared[row * 16 + k]);
                for (int column = 0; column < 8; ++column) {
                    round_to(b(column, k), shared[256 + column * 16 + k]);
                    round_to(b(column, k), shared[512 + k * 8 + column]);  // transposed
                }
            }
        __syncthreads();
        uint32_t x[4], w[4], transposed[4];
        ldmatrix_x4(x, shared + lane % 16 * 16 + lane / 16 * 8);
        ldmatrix_x4(w, shared + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
        ldmatrix_x4_trans(transposed, shared + 512 + lane % 16 * 8);
        CHECK(w[0] == transposed[0] && w[1] == transposed[1]);
        float d[4] = {};
        const uint32_t pair[2] = {w[0], w[1]};
        if constexpr (sizeof(T) == 2 && std::is_same_v<T, __half>)
            mma_fp16_m16n8k16(d, x, pair);
        else
            mma_bf16_m16n8k16(d, x, pair);
        for (int i = 0; i < 4; ++i) got[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = d[i];
    });
    for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
            float sum = 0;
            for (int k = 0; k < 16; ++k) sum += a(row, k) * b(column, k);
            CHECK(got[row][column] == sum);
        }
}

void blocks_of_one_wave_can_wait_for_each_other(int resident) {
    const Memory flag(sizeof(uint32_t));
    run(3, 2, resident, 0, [&] {
        if (blockIdx.x == 2 && threadIdx.x == 0) st_release_sys(flag.as<uint32_t>(), 1);
        while (ld_acquire_sys(flag.as<uint32_t>()) == 0) spin_pause();
    });
}

void relaxed_and_added_words() {
    const Memory words(2 * sizeof(uint32_t));
    run(4, 8, 2, 0, [&] {
        red_release_sys_add(words.as<uint32_t>(), 2);
        if (blockIdx.x == 0 && threadIdx.x == 0) st_relaxed_sys(words.as<uint32_t>() + 1, 5);
    });
    CHECK(ld_relaxed_sys(words.as<uint32_t>()) == 64 && ld_relaxed_sys(words.as<uint32_t>() + 1) == 5);
}

void everything_right() {
    threads_have_their_indices();
    shared_memory_begins_as_nan();
    a_barrier_lets_all_see_what_was_written();
    the_seed_shuffles_threads();
    shuffles_exchange_within_a_warp();
    a_copy_comes_at_its_wait();
    fragments_make_products<__half>();
    fragments_make_products<__nv_bfloat16>();
    blocks_of_one_wave_can_wait_for_each_other(3);
    relaxed_and_added_words();
}

void wrong_in(const std::string& way) {
    const Memory memory(64);
    if (way == "divergence")
        run(1, 8, 1, 0, [] {
            if (threadIdx.x != 5) __syncthreads();
        });
    else if (way == "warp")
        run(1, 32, 1, 0, [] {
            if (threadIdx.x < 16) __syncwarp();
        });
    else if (way == "deadlock")
        run(1, 64, 1, 0, [] { threadIdx.x == 3 ? __syncwarp() : __syncthreads(); });
    else if (way == "wave")
        blocks_of_one_wave_can_wait_for_each_other(2);
    else if (way == "alignment")
        run(1, 1, 1, 0, [&] { st_global_16(memory.get() + 8, make_uint4(0, 0, 0, 0)); });
    else if (way == "race")  // for ThreadSanitizer
        run(1, 2, 1, 0, [&] { memory.as<int>()[0] = static_cast<int>(threadIdx.x); });
    else
        std::printf("no such way: %s\n", way.c_str());
}

}  // namespace

}  // namespace fastserve::cuda

int main(int argc, char** argv) {
    if (argc > 1)
        fastserve::cuda::wrong_in(argv[1]);
    else
        fastserve::cuda::everything_right();
    return failures() == 0 ? 0 : 1;
}
