// Operands of a matmul, and what their product must be.
#pragma once

#include <cmath>
#include <functional>

#include "check.h"
#include "cuda/tile.cuh"
#include "devices.h"

namespace fastserve::cuda {

inline int padded(int k) {
    return (k + 7) / 8 * 8;
}

// Of one rank. Between rows lies NaN.
template <typename T>
class ProductCase {
  public:
    ProductCase(int m, int n, int k, int rank)
        : m_(m), n_(n), k_(k), x_(m, k, padded(k) - k + 8), w_(n, k, padded(k) - k) {
        x_.fill([&](int row, int column) { return noise(1, rank, row, column); });
        w_.fill([&](int row, int column) { return noise(2, rank, row, column); });
    }

    Operands<T> operands() const {
        return {x_.rows().data, x_.rows().ld, w_.rows().data, w_.rows().ld, m_, n_, k_};
    }

    double exact(int row, int column) const {
        double sum = 0;
        for (int i = 0; i < k_; ++i)
            sum += static_cast<double>(to_float(x_.at(row, i))) * to_float(w_.at(column, i));
        return sum;
    }

  private:
    int m_, n_, k_;
    Values<T> x_, w_;
};

// Within the rounding of O, and of a sum of k products of numbers below 1 in fp32.
template <typename O>
void check_close(const Values<O>& y, int m, int n, const std::function<double(int row, int column)>& exact,
                 int k) {
    const double rounding = sizeof(O) == 4 ? 1e-6 : std::is_same_v<O, __half> ? 0x1p-11 : 0x1p-8;
    int num_wrong = 0;
    for (int row = 0; row < m; ++row)
        for (int column = 0; column < n; ++column) {
            const double wanted = exact(row, column), got = to_float(y.at(row, column));
            num_wrong += !(std::abs(got - wanted) <= std::abs(wanted) * rounding + 1e-6 * std::sqrt(k));
        }
    if (num_wrong > 0) std::printf("%d of %d x %d wrong\n", num_wrong, m, n);
    CHECK(num_wrong == 0);
}

}  // namespace fastserve::cuda
