// Exchange buffers as the host makes them, and the epoch that ends kernels: a group's own, raised where the
// group's host memory is, or the buffer's.
#include <thread>
#include <vector>

#include "check.h"
#include "cuda/all_reduce.cu"
#include "cuda/epoch_word.cpp"
#include "cuda/errors.cpp"
#include "cuda/exchange_buffer.cpp"
#include "cuda/per_device.cpp"
#include "devices.h"
#include "ring/shared_region.cpp"

namespace fastserve::cuda {

namespace {

constexpr int kRows = 3, kColumns = 500;

uint32_t* word_of(const SharedRegion& region) {
    return reinterpret_cast<uint32_t*>(const_cast<std::atomic<uint32_t>*>(&region.epoch()));
}

// The buffers of two ranks, connected.
class Pair {
  public:
    explicit Pair(uint32_t* epoch_0, uint32_t* epoch_1) : buffers_{{0, 2, epoch_0}, {1, 2, epoch_1}} {
        const std::vector<std::string> handles = {buffers_[0].handle(), buffers_[1].handle()};
        for (ExchangeBuffer& buffer : buffers_) buffer.connect(handles);
    }
    ExchangeBuffer& operator[](int rank) { return buffers_[rank]; }

  private:
    ExchangeBuffer buffers_[2];
};

// Ranks that share a region, each by a mapping of its own.
struct Group {
    std::shared_ptr<SharedRegion> regions[2];

    Group() {
        regions[0] = SharedRegion::create(2, 4096, 0);
        regions[1] = SharedRegion::attach(regions[0]->fd());
    }
    uint32_t* epoch(int rank) const { return word_of(*regions[rank]); }
};

void sum(Pair& pair, int rank, const Values<float>& x, uint64_t seed) {
    const Matrix matrix = {x.rows().data, x.rows().ld};
    all_reduce(pair[rank].exchange(), {matrix, matrix, kRows, kColumns, DataType::f32},
               reinterpret_cast<Stream>(seed));
}

Values<float> ones() {
    Values<float> x(kRows, kColumns);
    x.fill([](int, int) { return 1; });
    return x;
}

void check_sum(Pair& pair, uint64_t seed) {
    const Values<float> x[] = {ones(), ones()};
    std::thread peer([&] { sum(pair, 1, x[1], seed + 1); });
    sum(pair, 0, x[0], seed);
    peer.join();
    int num_wrong = 0;
    for (const Values<float>& out : x)
        for (int row = 0; row < kRows; ++row)
            for (int column = 0; column < kColumns; ++column) num_wrong += out.at(row, column) != 2;
    CHECK(num_wrong == 0);
}

// Rank 0 waits for a rank that never comes, until somebody raises the epoch; that nobody did is a hang, which
// the emulator ends. What it has pushed says that it is about to wait.
void check_that_a_wait_ends(Pair& pair, uint64_t seed, const std::function<void()>& raise) {
    const Values<float> x = ones();
    std::thread waiting([&] { sum(pair, 0, x, seed); });
    auto& flags = *static_cast<AllReduceFlags*>(pair[1].exchange().buffers[1]);
    static_assert(static_cast<int>(Area::kAllReduce) == 0);
    const uint32_t call = flags.calls[0] + 1;
    while (ld_acquire_sys(&flags.arrived[kScatter][0][0]) != call) std::this_thread::yield();
    raise();
    waiting.join();
}

void check_the_groups_epoch(uint64_t seed) {
    Group group;
    Pair pair(group.epoch(0), group.epoch(1));
    check_sum(pair, seed);
    CHECK(!group.regions[0]->failed());
    check_that_a_wait_ends(pair, seed, [&] { group.regions[1]->raise_epoch(Loss::died, 7); });
    CHECK(group.regions[0]->failed());
    CHECK(group.regions[0]->lost_pid() == 7);
}

void check_that_a_buffer_raises_the_groups_epoch(uint64_t seed) {
    Group group;
    Pair pair(group.epoch(0), group.epoch(1));
    check_that_a_wait_ends(pair, seed, [&] { pair[1].raise_epoch(); });
    CHECK(group.regions[0]->failed());
}

// The group may have lost a rank before its GPUs were connected.
void check_that_no_kernel_waits_in_a_group_that_is_over(uint64_t seed) {
    Group group;
    group.regions[0]->raise_epoch();
    Pair pair(group.epoch(0), group.epoch(1));
    sum(pair, 0, ones(), seed);
}

void check_an_epoch_of_its_own(uint64_t seed) {
    Pair pair(nullptr, nullptr);
    check_sum(pair, seed);
    check_that_a_wait_ends(pair, seed, [&] { pair[0].raise_epoch(); });
}

void check_that_memory_is_given_back() {
    Group group;
    for (int i = 0; i < 2; ++i) {
        const ExchangeBuffer buffer(0, 2, group.epoch(0));
        CHECK_THROWS(EpochWord(group.epoch(0)), std::runtime_error);  // CUDA pins a page once
    }
    uint32_t* word = group.epoch(0);
    void* page = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(word) / 4096 * 4096);
    CHECK(cudaHostUnregister(page) == cudaErrorHostMemoryNotRegistered);
}

void check_areas() {
    for (int size = 2; size <= kMaxRanks; ++size) {
        CHECK(triton_area_offset(size) % 128 == 0);
        CHECK(triton_area_offset(size) ==
              area_offset(Area::kMatmulShots, size) + kMatmulShotFlagBytes + 2 * kMatmulHalfBytes);
        CHECK(triton_area_offset(size) + kTritonAreaBytes == exchange_bytes(size));
    }
}

void check_refusals() {
    CHECK_THROWS(ExchangeBuffer(0, 9), std::invalid_argument);
    CHECK_THROWS(ExchangeBuffer(2, 2), std::invalid_argument);
    ExchangeBuffer buffer(0, 2);
    CHECK_THROWS(buffer.exchange(), std::invalid_argument);
    CHECK_THROWS(buffer.connect({buffer.handle()}), std::invalid_argument);
    CHECK_THROWS(buffer.connect({buffer.handle(), "short"}), std::invalid_argument);
}

}  // namespace

}  // namespace fastserve::cuda

int main(int argc, char** argv) {
    using namespace fastserve::cuda;
    const uint64_t seed = seed_of(argc, argv);
    check_areas();
    check_refusals();
    check_that_memory_is_given_back();
    check_the_groups_epoch(seed);
    check_that_a_buffer_raises_the_groups_epoch(seed);
    check_that_no_kernel_waits_in_a_group_that_is_over(seed);
    check_an_epoch_of_its_own(seed);
    return failures() == 0 ? 0 : 1;
}
