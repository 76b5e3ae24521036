// Which all-reduce is the faster one. Both give the same bits (exchange.h), so this is free to change.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastserve {

enum class AllReduceAlgorithm : int32_t { one_shot, ring };

// What a core reads in the about 1 us that one more wait for another core costs, at about 10 GB/s.
constexpr size_t kBytesPerWait = 10 * 1000;

// One-shot waits once and reads R - 1 matrices; the ring waits R times in a row and reads 2 (R - 1) / R
// matrices, which is (R - 1) (R - 2) / R fewer. With two ranks both read the same, so one-shot wins however
// large the matrix is.
constexpr AllReduceAlgorithm choose_all_reduce(size_t bytes, int ranks) {
    if (ranks <= 2) return AllReduceAlgorithm::one_shot;
    const size_t saved_per_wait = bytes / static_cast<size_t>(ranks) * static_cast<size_t>(ranks - 2);
    return saved_per_wait <= kBytesPerWait ? AllReduceAlgorithm::one_shot : AllReduceAlgorithm::ring;
}

}  // namespace fastserve
