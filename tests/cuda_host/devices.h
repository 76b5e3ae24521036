// Several emulated devices with exchange areas that all of them see; values of any element type.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "cuda/elements.cuh"
#include "cuda/peers.cuh"

namespace fastserve::cuda {

// Memory as cudaMalloc gives it: aligned, and exactly as large as asked.
class Memory {
  public:
    explicit Memory(size_t bytes, int fill = 0) {
        void* data;
        if (posix_memalign(&data, 256, bytes > 0 ? bytes : 1) != 0) std::abort();
        std::memset(data, fill, bytes);
        data_.reset(static_cast<unsigned char*>(data));
    }
    unsigned char* get() const { return data_.get(); }
    template <typename T>
    T* as() const {
        return reinterpret_cast<T*>(data_.get());
    }

  private:
    struct Free {
        void operator()(unsigned char* data) const { std::free(data); }
    };
    std::unique_ptr<unsigned char, Free> data_;
};

// An exchange area, of which only what is used takes memory.
class AreaMemory {
  public:
    explicit AreaMemory(size_t bytes)
        : bytes_(bytes),
          data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                     0)) {
        if (data_ == MAP_FAILED) std::abort();
    }
    ~AreaMemory() { munmap(data_, bytes_); }
    AreaMemory(const AreaMemory&) = delete;
    AreaMemory& operator=(const AreaMemory&) = delete;

    unsigned char* get() const { return static_cast<unsigned char*>(data_); }

  private:
    size_t bytes_;
    void* data_;
};

class Devices {
  public:
    Devices(int size, size_t area_bytes) {
        for (int rank = 0; rank < size; ++rank) areas_.emplace_back(area_bytes);
    }

    int size() const { return static_cast<int>(areas_.size()); }

    Peers peers(int rank) const {
        Peers peers = {};
        peers.rank = rank;
        peers.size = size();
        for (int r = 0; r < size(); ++r) peers.areas[r] = areas_[r].get();
        peers.epoch = &epoch_;
        return peers;
    }

    // One thread per device, as one stream each.
    void run(const std::function<void(int rank)>& device) {
        std::vector<std::thread> threads;
        for (int rank = 0; rank < size(); ++rank) threads.emplace_back(device, rank);
        for (std::thread& thread : threads) thread.join();
    }

    void raise_epoch() { __atomic_store_n(&epoch_, 1, __ATOMIC_RELEASE); }

  private:
    std::deque<AreaMemory> areas_;
    uint32_t epoch_ = 0;
};

// A matrix of `T`, rows `ld` apart; what lies between rows stays NaN.
template <typename T>
class Values {
  public:
    Values(int rows, int d, int extra = 0, int offset = 0)
        : rows_(rows),
          d_(d),
          ld_(d + extra),
          offset_(offset),
          memory_((static_cast<size_t>(rows) * ld_ + offset) * sizeof(T), 0xff) {}

    T& at(int row, int column) const {
        return memory_.as<T>()[offset_ + static_cast<long long>(row) * ld_ + column];
    }
    Rows<T> rows() const {
        return {memory_.as<T>() + offset_, ld_, d_,
                offset_ * sizeof(T) % 16 == 0 && ld_ * sizeof(T) % 16 == 0};
    }
    void fill(const std::function<float(int row, int column)>& value) const {
        for (int r = 0; r < rows_; ++r)
            for (int c = 0; c < d_; ++c) round_to(value(r, c), at(r, c));
    }

  private:
    int rows_, d_;
    long long ld_;
    int offset_;
    Memory memory_;
};

template <typename T>
float rounded(float x) {
    T y;
    round_to(x, y);
    return to_float(y);
}

// What the ranks' `part`s of a column add up to, in the order in which its chunk goes around the ring.
inline float sum_around_ring(int ranks, int column, int d, const std::function<float(int rank)>& part) {
    int rank = chunk_of(column, ranks, d);
    float sum = 0;
    for (int i = 0; i < ranks; ++i) {
        rank = (rank + 1) % ranks;
        sum = i == 0 ? part(rank) : sum + part(rank);
    }
    return sum;
}

// Numbers in [-1, 1) that depend on what they are for alone.
inline float noise(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    uint64_t x =
        a * 0x9E3779B97F4A7C15u ^ b * 0xC2B2AE3D27D4EB4Fu ^ c * 0x165667B19E3779F9u ^ d * 0xD6E8FEB86659FD93u;
    x ^= x >> 32, x *= 0xD6E8FEB86659FD93u, x ^= x >> 32, x *= 0xD6E8FEB86659FD93u, x ^= x >> 32;
    return static_cast<float>(x >> 40) / (1 << 23) - 1;
}

// Under sanitizers: fewer and smaller cases, of fewer types.
#ifdef FASTSERVE_QUICK
constexpr bool kQuick = true;
#else
constexpr bool kQuick = false;
#endif

// The command line of a test is a seed for the order of fibers.
inline uint64_t seed_of(int argc, char** argv) {
    return argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
}

}  // namespace fastserve::cuda
