// The ops as the host calls them, on emulated devices: every strategy and tile that the launchers choose
// among, one call after another on the same exchange buffers.
#include "check.h"
#include "cuda/add_rms_norm.cu"
#include "cuda/all_reduce.cu"
#include "cuda/all_reduce_add_rms_norm.cu"
#include "cuda/errors.cpp"
#include "cuda/matmul.cu"
#include "cuda/matmul_all_reduce.cu"
#include "cuda/per_device.cpp"
#include "cuda/swap.cu"
#include "product_case.h"

namespace fastserve::cuda {

namespace {

constexpr int kRanks = 3;

class Ranks {
  public:
    Ranks() : devices_(kRanks, exchange_bytes(kRanks)) {}

    Exchange exchange(int rank) const {
        const Peers peers = devices_.peers(rank);
        Exchange exchange = {rank, kRanks, {}, peers.epoch, 0};
        for (int r = 0; r < kRanks; ++r) exchange.buffers[r] = peers.areas[r];
        return exchange;
    }

    void run(const std::function<void(int rank)>& device) { devices_.run(device); }

  private:
    Devices devices_;
};

Stream stream_of(uint64_t seed) {
    return reinterpret_cast<Stream>(seed);
}

template <typename E>
cuda::Matrix matrix_of(const Rows<E>& rows) {
    return {rows.data, rows.ld};
}

void check_all_reduce(Ranks& ranks, int rows, int d, uint64_t seed) {
    std::vector<Values<float>> x;
    for (int rank = 0; rank < kRanks; ++rank) {
        x.emplace_back(rows, d);
        x.back().fill([&](int row, int column) { return (row + column + rank) % 100; });
    }
    ranks.run([&](int rank) {
        const Matrix in = matrix_of(x[rank].rows());
        all_reduce(ranks.exchange(rank), {in, in, rows, d, DataType::f32}, stream_of(seed + rank));
    });
    int num_wrong = 0;
    for (const Values<float>& out : x)
        for (int row = 0; row < rows; ++row)
            for (int column = 0; column < d; ++column) {
                float sum = 0;
                for (int rank = 0; rank < kRanks; ++rank) sum += (row + column + rank) % 100;
                num_wrong += out.at(row, column) != sum;
            }
    CHECK(num_wrong == 0);
}

// With more rows than the slots hold at once, too. The norm behind the sum gives the same bits.
void check_norm(Ranks& ranks, int rows, int d, uint64_t seed) {
    std::vector<Values<__half>> x, residual, out, in_turn;
    for (int rank = 0; rank < kRanks; ++rank) {
        for (auto* values : {&x, &residual, &out, &in_turn}) values->emplace_back(rows, d);
        x[rank].fill([&](int row, int) { return rank + row % 2; });
        for (auto* values : {&residual, &in_turn}) (*values)[rank].fill([](int, int) { return 1; });
    }
    const Memory weight(d * sizeof(float));
    for (int column = 0; column < d; ++column) weight.as<float>()[column] = 2;
    ranks.run([&](int rank) {
        all_reduce_add_rms_norm(
            ranks.exchange(rank),
            {matrix_of(x[rank].rows()), matrix_of(residual[rank].rows()), matrix_of(out[rank].rows()),
             weight.as<float>(), 0, rows, d, DataType::f16, DataType::f16},
            stream_of(seed + rank));
        const Matrix sum = matrix_of(x[rank].rows());
        all_reduce(ranks.exchange(rank), {sum, sum, rows, d, DataType::f16}, stream_of(seed + rank));
        add_rms_norm(
            {sum, matrix_of(in_turn[rank].rows()), sum, weight.as<float>(), 0, rows, d, DataType::f16},
            stream_of(seed + rank));
    });
    int num_wrong = 0;
    for (int rank = 0; rank < kRanks; ++rank) {
        const size_t bytes = sizeof(__half) * rows * d;
        CHECK(std::memcmp(&x[rank].at(0, 0), &out[rank].at(0, 0), bytes) == 0);
        CHECK(std::memcmp(&in_turn[rank].at(0, 0), &residual[rank].at(0, 0), bytes) == 0);
        for (int row = 0; row < rows; ++row)
            for (int column = 0; column < d; ++column) {
                num_wrong += to_float(residual[rank].at(row, column)) != 4 + row % 2 * 3;
                num_wrong += std::abs(to_float(out[rank].at(row, column)) - 2) > 0.002f;
            }
    }
    CHECK(num_wrong == 0);
}

void check_matmul(int m, int n, Epilogue epilogue, uint64_t seed) {
    using T = __nv_bfloat16;
    constexpr int kK = 70;
    const bool gated = epilogue == Epilogue::silu_mul;
    const ProductCase<T> product(m, gated ? 2 * n : n, kK, 0);
    const Operands<T> operands = product.operands();
    const Values<T> y(m, n);
    matmul({{const_cast<T*>(operands.x), operands.ldx},
            {const_cast<T*>(operands.w), operands.ldw},
            matrix_of(y.rows()),
            nullptr,
            m,
            n,
            kK,
            DataType::bf16,
            DataType::bf16,
            epilogue},
           stream_of(seed));
    const auto exact = [&](int row, int column) {
        const double x = product.exact(row, column);
        return gated ? x / (1 + std::exp(-x)) * product.exact(row, n + column) : std::max(x, 0.0);
    };
    check_close(y, m, n, exact, kK);
}

// fused(exchange, call, stream) gives the bits of matmul and all_reduce. y is of O: of T, or of fp32.
template <typename O, class Fused>
void check_fused(Ranks& ranks, int m, int n, uint64_t seed, const Fused& fused) {
    using T = __nv_bfloat16;
    constexpr int kK = 40;
    constexpr DataType kType = sizeof(O) == 4 ? DataType::f32 : DataType::bf16;
    std::vector<ProductCase<T>> products;
    std::vector<Values<O>> at_once, in_turn;
    for (int rank = 0; rank < kRanks; ++rank) {
        products.emplace_back(m, n, kK, rank);
        for (auto* y : {&at_once, &in_turn}) y->emplace_back(m, n);
    }
    ranks.run([&](int rank) {
        const Operands<T> operands = products[rank].operands();
        const auto product = [&](const Values<O>& y) {
            return MatmulCall{{const_cast<T*>(operands.x), operands.ldx},
                              {const_cast<T*>(operands.w), operands.ldw},
                              matrix_of(y.rows()),
                              nullptr,
                              m,
                              n,
                              kK,
                              DataType::bf16,
                              kType,
                              Epilogue::none};
        };
        const Matrix y = matrix_of(in_turn[rank].rows());
        fused(ranks.exchange(rank), product(at_once[rank]), stream_of(seed + rank));
        matmul(product(in_turn[rank]), stream_of(seed + rank));
        all_reduce(ranks.exchange(rank), {y, y, m, n, kType}, stream_of(seed + rank));
    });
    for (int rank = 0; rank < kRanks; ++rank)
        CHECK(std::memcmp(&at_once[rank].at(0, 0), &in_turn[0].at(0, 0), sizeof(O) * m * n) == 0);
}

void check_matmul_all_reduce(Ranks& ranks, uint64_t seed) {
    using enum Strategy;
    check_fused<__nv_bfloat16>(ranks, 5, 200, seed, &matmul_all_reduce);
    check_fused<float>(ranks, 5, 200, seed, &matmul_all_reduce);
    if constexpr (kQuick) return;
    const auto check = [&](int m, int n, const MatmulAllReduceChoice& choice) {
        check_fused<__nv_bfloat16>(ranks, m, n, seed,
                                   [&](const Exchange& exchange, const MatmulCall& call, Stream stream) {
                                       run_as<__nv_bfloat16>(choice, exchange, call, stream);
                                   });
    };
    check(40, 200, {kOneShot, TileSize::kMiddle, 40});
    check(40, 700, {kTwoShot, TileSize::kSmall, 16});  // in three slices, of which the last has fewer tiles
    check(130, 200, {kTwoShot, TileSize::kMiddle, 128});
    check(130, 700, {kTwoShot, TileSize::kLarge, 130});
    check(130, 700, {kRing, TileSize::kLarge, 130});
}

void check_swap(uint64_t seed) {
    constexpr int kBlockBytes = 16 * 5000, kBlocks = 7;
    const Memory from(kBlockBytes * kBlocks), to(kBlockBytes * kBlocks), lists(2 * 3 * sizeof(int32_t));
    for (int i = 0; i < kBlockBytes * kBlocks; ++i)
        from.get()[i] = static_cast<unsigned char>(i * 31 + i / kBlockBytes);
    const int from_blocks[] = {6, 0, 3}, to_blocks[] = {1, 5, 0};
    std::memcpy(lists.get(), from_blocks, sizeof(from_blocks));
    std::memcpy(lists.get() + sizeof(from_blocks), to_blocks, sizeof(to_blocks));
    swap({from.get(), to.get(), lists.as<int32_t>(), lists.as<int32_t>() + 3, 3, kBlockBytes},
         stream_of(seed));
    for (int block = 0; block < kBlocks; ++block) {
        const int* found = std::find(to_blocks, to_blocks + 3, block);
        const unsigned char* got = to.get() + block * kBlockBytes;
        if (found == to_blocks + 3)
            CHECK(std::all_of(got, got + kBlockBytes, [](unsigned char byte) { return byte == 0; }));
        else
            CHECK(std::memcmp(got, from.get() + from_blocks[found - to_blocks] * kBlockBytes, kBlockBytes) ==
                  0);
    }
}

void check_refusals(const Ranks& ranks) {
    const Memory memory(1 << 12);
    const Matrix good = {memory.get(), 64}, crooked = {memory.get() + 2, 64};
    const auto product = [&](const Matrix& x, DataType type, Epilogue epilogue) {
        return MatmulCall{x, good, good, nullptr, 1, 8, 64, type, type, epilogue};
    };
    CHECK_THROWS(matmul(product(crooked, DataType::bf16, Epilogue::none), nullptr), std::invalid_argument);
    CHECK_THROWS(matmul(product(good, DataType::f32, Epilogue::none), nullptr), std::invalid_argument);
    CHECK_THROWS(matmul_all_reduce(ranks.exchange(0), product(good, DataType::bf16, Epilogue::relu), nullptr),
                 std::invalid_argument);
    CHECK_THROWS(all_reduce(ranks.exchange(0), {good, good, 1, 8, DataType::s32}, nullptr),
                 std::invalid_argument);
    CHECK_THROWS(all_reduce(ranks.exchange(0), {good, good, 1 << 16, 1 << 16, DataType::f32}, nullptr),
                 std::invalid_argument);
    CHECK_THROWS(add_rms_norm({good, good, good, nullptr, 0, 1, 8, DataType::s32}, nullptr),
                 std::invalid_argument);
    CHECK_THROWS(swap({memory.get(), memory.get(), nullptr, nullptr, 1, 24}, nullptr), std::invalid_argument);
}

void check_choices() {
    CHECK(choose_all_reduce(2 * 4096, 4 * 4096, 2) == Strategy::kOneShot);
    CHECK(choose_all_reduce(8LL << 20, 2LL << 20, 8) == Strategy::kTwoShot);
    CHECK(choose_all_reduce(64LL << 20, 32LL << 20, 2) == Strategy::kRing);
    const auto chosen = [](int m, int n, int size, Strategy strategy, TileSize tile, int rows) {
        const MatmulAllReduceChoice choice = choose_matmul_all_reduce(m, n, size);
        return choice.strategy == strategy && choice.tile == tile && choice.rows == rows;
    };
    CHECK(chosen(16, 4096, 8, Strategy::kOneShot, TileSize::kSmall, 16));
    CHECK(chosen(64, 4096, 2, Strategy::kOneShot, TileSize::kMiddle, 64));
    CHECK(chosen(64, 4096, 8, Strategy::kTwoShot, TileSize::kMiddle, 64));
    CHECK(chosen(2048, 4096, 8, Strategy::kTwoShot, TileSize::kLarge, 2048));
    CHECK(chosen(3000, 8192, 8, Strategy::kTwoShot, TileSize::kLarge, 1024));
    CHECK(chosen(256, 32768, 8, Strategy::kTwoShot, TileSize::kLarge, 256));
    CHECK(chosen(2048, 32768, 8, Strategy::kRing, TileSize::kLarge, 2048));
    CHECK(chosen(1, 200000, 2, Strategy::kRing, TileSize::kLarge, 1));  // more tiles than there are flags
    CHECK(choose_matmul(1, 4096, 132) == TileSize::kSmall);
    CHECK(choose_matmul(128, 4096, 132) == TileSize::kMiddle);
    CHECK(choose_matmul(4096, 4096, 132) == TileSize::kLarge);
}

// What CUDA says of a device does not change: it is asked once, whoever launches.
void check_what_is_asked_once(uint64_t seed) {
    const auto launch_two = [&] {
        for (int i = 0; i < 2; ++i) check_matmul(140, 300, Epilogue::relu, seed);
    };
    const int multiprocessors = runtime_calls.num_multiprocessors, bytes = runtime_calls.allow_shared_bytes;
    for (int device = 0; device < kHostDevices; ++device)
        std::thread([&] {
            host_device = device;
            launch_two();
            CHECK(num_multiprocessors() == ask_num_multiprocessors(device));
        }).join();
    CHECK(runtime_calls.num_multiprocessors == multiprocessors + 2 * kHostDevices);
    CHECK(runtime_calls.allow_shared_bytes == bytes + kHostDevices);
}

}  // namespace

}  // namespace fastserve::cuda

int main(int argc, char** argv) {
    using namespace fastserve::cuda;
    const uint64_t seed = seed_of(argc, argv);
    Ranks ranks;
    check_choices();
    check_what_is_asked_once(seed);
    check_refusals(ranks);
    check_swap(seed);
    check_all_reduce(ranks, 1, 1000, seed);
    check_matmul_all_reduce(ranks, seed);
    if constexpr (!kQuick) {
        check_all_reduce(ranks, 300, 2048, seed);
        check_all_reduce(ranks, 1100, 2048, seed);
        check_norm(ranks, 3, 300, seed);
        check_norm(ranks, 520, 8192, seed);
        check_all_reduce(ranks, 2, 2, seed);
        for (Epilogue epilogue : {Epilogue::relu, Epilogue::silu_mul}) {
            check_matmul(3, 70, epilogue, seed);
            check_matmul(33, 70, epilogue, seed);
            check_matmul(140, 300, epilogue, seed);
        }
    }
    return failures() == 0 ? 0 : 1;
}
