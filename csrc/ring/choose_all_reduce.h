// Which all-reduce is the fastest one. All give the same bits (exchange.h), so this is free to change.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastserve {

enum class AllReduceAlgorithm : int32_t { one_shot, two_shot, ring };

// What one-shot writes more than two-shot costs as much as the wait that it saves.
constexpr size_t kOneShotBytes = 8 * 1024;

// bytes: of a rank's matrix. One-shot waits once and writes R - 1 matrices, two-shot waits twice and writes
// 2 (R - 1) / R of one. The ring writes as much in R waits: inside a host, where every rank reaches every
// other, it is never the fastest.
constexpr AllReduceAlgorithm choose_all_reduce(size_t bytes, int ranks) {
    const size_t written = bytes * static_cast<size_t>(ranks - 1);
    return written <= kOneShotBytes ? AllReduceAlgorithm::one_shot : AllReduceAlgorithm::two_shot;
}

}  // namespace fastserve
