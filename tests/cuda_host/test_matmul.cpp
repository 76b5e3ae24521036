// The main loop of the matmuls and the column-parallel op on it, against sums in double.
#include "cuda/matmul.cuh"

#include <cmath>
#include <cstdio>

#include "check.h"
#include "emulator.h"
#include "product_case.h"

namespace fastserve::cuda {

namespace {

enum class Kind { kPlain, kGated };

template <class Tile, typename O, Kind kKind>
void check_case(int m, int n, int k, Activation activation, bool with_bias, int blocks, uint64_t seed) {
    using T = typename Tile::T;
    constexpr bool kGated = kKind == Kind::kGated;
    using Columns = std::conditional_t<kGated, GateUpColumns, PlainColumns>;
    const ProductCase<T> product(m, kGated ? 2 * n : n, k, 0);
    const Memory bias(n * sizeof(float));
    for (int column = 0; column < n; ++column) bias.as<float>()[column] = noise(3, 3, 3, column);
    const Values<O> y(m, n, n % 3);
    const Rows<O> rows = y.rows();
    const MatmulArgs<T> args = {product.operands(),
                                with_bias ? bias.as<float>() : nullptr,
                                activation,
                                {rows.data, rows.ld, m, n, sizeof(O) == 4, rows.aligned}};
    const cuda_host::Launch shape = {blocks, Tile::kThreads, sizeof(TileShared<Tile>), 2, seed, "matmul"};
    cuda_host::launch(shape, [&] { matmul<Tile, Columns>(args); });
    const auto exact = [&](int row, int column) -> double {
        if constexpr (kGated) {
            const double gate = product.exact(row, column);
            return gate / (1 + std::exp(-gate)) * product.exact(row, n + column);
        }
        const double x = product.exact(row, column) + (with_bias ? bias.as<float>()[column] : 0);
        switch (activation) {
            case Activation::kSilu:
                return x / (1 + std::exp(-x));
            case Activation::kGeluTanh:
                return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
            case Activation::kRelu:
                return std::max(x, 0.0);
            default:
                return x;
        }
    };
    check_close(y, m, n, exact, k);
}

template <class Tile>
void check_tile(uint64_t seed) {
    using T = typename Tile::T;
    check_case<Tile, T, Kind::kPlain>(1, 1, 1, Activation::kNone, false, 1, seed);
    check_case<Tile, T, Kind::kPlain>(1, 300, 130, Activation::kSilu, true, 2, seed);
    check_case<Tile, float, Kind::kPlain>(Tile::kM + 3, 2 * Tile::kN + 1, 200, Activation::kNone, true, 3,
                                          seed);
    check_case<Tile, T, Kind::kGated>(Tile::kM + 1, Tile::kN + 8, 328, Activation::kNone, false, 2, seed);
}

// Rows of x among others, and alone, by another tile: the same bits.
template <class Large, class Small>
void check_same_bits(uint64_t seed) {
    using T = typename Large::T;
    constexpr int kM = 20, kN = 70, kK = 300;
    const ProductCase<T> product(kM, kN, kK, 0);
    const Values<float> all(kM, kN), one(1, kN);
    const auto run = [&]<class Tile>(Operands<T> operands, const Values<float>& y) {
        const MatmulArgs<T> args = {
            operands, nullptr, Activation::kNone, {y.rows().data, kN, operands.m, kN, true, kN % 4 == 0}};
        cuda_host::launch({2, Tile::kThreads, sizeof(TileShared<Tile>), 2, seed, "matmul"},
                          [&] { matmul<Tile, PlainColumns>(args); });
    };
    run.template operator()<Large>(product.operands(), all);
    for (int row : {0, 7, 19}) {
        Operands<T> operands = product.operands();
        operands.x += row * operands.ldx;
        operands.m = 1;
        run.template operator()<Small>(operands, one);
        CHECK(std::memcmp(&one.at(0, 0), &all.at(row, 0), kN * sizeof(float)) == 0);
    }
}

void check_order_of_tiles() {
    for (int rows : {1, 7, 8, 9, 20})
        for (int columns : {1, 5}) {
            std::vector<int> seen(rows * columns);
            for (int i = 0; i < rows * columns; ++i) {
                const TilePlace place = place_of(i, rows, columns);
                CHECK(0 <= place.row && place.row < rows && 0 <= place.column && place.column < columns);
                ++seen[place.row * columns + place.column];
            }
            for (int count : seen) CHECK(count == 1);
        }
}

}  // namespace

}  // namespace fastserve::cuda

int main(int argc, char** argv) {
    using namespace fastserve::cuda;
    const uint64_t seed = seed_of(argc, argv);
    check_order_of_tiles();
    using Small = Tile<__nv_bfloat16, 16, 32, 3, 1, 2>;
    check_tile<Small>(seed);
    if constexpr (!kQuick) {
        check_tile<Tile<__half, 64, 64, 4, 2, 2>>(seed);
        check_tile<Tile<__nv_bfloat16, 128, 128, 3, 2, 4>>(seed);
        check_same_bits<Tile<__nv_bfloat16, 128, 128, 3, 2, 4>, Small>(seed);
    }
    return failures() == 0 ? 0 : 1;
}
