// Checks and small sums of the launchers.
#pragma once

#include "errors.h"
#include "launch.h"

namespace fastserve::cuda {

inline void require(bool holds, const char* rule) {
    if (!holds) throw_invalid_argument(rule);
}

inline bool is_aligned(const Matrix& matrix, DataType type) {
    return reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 &&
           matrix.ld * static_cast<int64_t>(size_of(type)) % 16 == 0;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

}  // namespace fastserve::cuda
