// What the tests of the norms share: weights, and what a row must become.
#pragma once

#include <cmath>

#include "devices.h"

namespace fastserve::cuda {

constexpr float kEps = 1e-5f;

inline float norm_weight(int column) {
    return 0.5f + noise(9, 9, 9, column);
}

inline Memory norm_weights(int d) {
    Memory weights(d * sizeof(float));
    for (int column = 0; column < d; ++column) weights.as<float>()[column] = norm_weight(column);
    return weights;
}

// `residual` must be `wanted` bit by bit, `out` its norm within a rounding.
template <typename T>
int num_wrong_in_norm(const Values<T>& wanted, const Values<T>& residual, const Values<T>& out, int rows,
                      int d) {
    int num_wrong = 0;
    for (int row = 0; row < rows; ++row) {
        double squares = 0;
        for (int column = 0; column < d; ++column) squares += std::pow(to_float(wanted.at(row, column)), 2);
        const double scale = 1 / std::sqrt(squares / d + kEps);
        for (int column = 0; column < d; ++column) {
            const float r = to_float(wanted.at(row, column));
            const double exact = r * scale * norm_weight(column);
            const double tolerance = std::abs(exact) * (sizeof(T) == 4 ? 1e-5 : 0x1p-8) + 1e-6;
            num_wrong += to_float(residual.at(row, column)) != r;
            num_wrong += !(std::abs(to_float(out.at(row, column)) - exact) <= tolerance);
        }
    }
    return num_wrong;
}

}  // namespace fastserve::cuda
