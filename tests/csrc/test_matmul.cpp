// matmul of every ISA and weight type against a plain loop in double precision, and its promise of the same
// bits. `test_matmul --bench M N K type [isa] [threads] [activation bits]` times instead.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#define FASTSERVE_ISA_NAMESPACE portable  // whose choices are looked at
#include "cpu/matmul.h"
#include "cpu/threads.h"
#include "weights/half.h"
#include "weights/packed_buffer.h"
#include "weights/packed_layout.h"
#include "weights/packing.h"

namespace {

using namespace fastserve;

struct Format {
    WeightType type;
    int32_t activation_bits = 14;

    std::string name() const {
        return weight_type_name(type) + (activation_bits == 8 ? std::string(" 8 bits") : "");
    }
};
constexpr Format kFormats[] = {{WeightType::f32},   {WeightType::f16},    {WeightType::bf16},
                               {WeightType::q8},    {WeightType::q4},     {WeightType::q4m},
                               {WeightType::q4, 8}, {WeightType::q4m, 8}, {WeightType::q8, 8}};
constexpr float kUntouched = -12345.0f;
int failures = 0;

std::vector<float> random_floats(size_t count, uint32_t seed) {
    std::mt19937 draw(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(draw);
    return values;
}

// [rows, n] at ldy = n + 3, with untouched gaps checked.
std::vector<float> multiply(const OpTable& isa, int num_threads, const std::vector<float>& x, int64_t ldx,
                            int rows, const PackedWeight& w, int32_t activation_bits,
                            const std::string& what) {
    const int64_t ldy = w.n + 3, scratch_bytes = matmul_scratch_bytes(w.type, rows, w.k);
    std::vector<float> y(static_cast<size_t>(rows * ldy), kUntouched);
    std::vector<uint8_t> scratch(static_cast<size_t>(scratch_bytes) + 128, 0xa5);
    auto* aligned = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    const MatmulArgs args = {.x = x.data(),
                             .ldx = ldx,
                             .w = w,
                             .rows = rows,
                             .y = y.data(),
                             .ldy = ldy,
                             .scratch = aligned,
                             .activation_bits = activation_bits};
    Team team(std::vector<int>(static_cast<size_t>(num_threads), -1));
    team.run([&](const Worker& worker) { isa.matmul(args, worker); });
    bool clean = std::all_of(aligned + scratch_bytes, scratch.data() + scratch.size(),
                             [](uint8_t byte) { return byte == 0xa5; });
    std::vector<float> packed;
    for (int r = 0; r < rows; ++r) {
        const float* row = y.data() + r * ldy;
        packed.insert(packed.end(), row, row + w.n);
        clean &= std::all_of(row + w.n, row + ldy, [](float value) { return value == kUntouched; });
    }
    if (!clean) {
        std::printf("FAIL %s: wrote outside y or scratch\n", what.c_str());
        ++failures;
    }
    return packed;
}

// To a scale's bits of mantissa.
float rounded_up(float value) {
    int exponent;
    const float mantissa = std::frexp(value, &exponent);  // from 0.5 on
    const auto steps = static_cast<float>(2 * portable::kMantissas);
    return std::ldexp(std::ceil(mantissa * steps) / steps, exponent);
}

// What the kernels make of one row of x.
std::vector<double> rounded(const float* x, int k, const Format& format) {
    const WeightType type = format.type;
    std::vector<double> result(x, x + k);
    if (type == WeightType::bf16)
        for (double& value : result) value = bfloat_to_float(float_to_bfloat(static_cast<float>(value)));
    if (!is_quantised(type)) return result;
    for (int begin = 0; begin < k; begin += kQuantBlock) {
        float largest = 0;
        for (int i = begin; i < begin + kQuantBlock; ++i) largest = std::max(largest, std::abs(x[i]));
        const auto max_code = format.activation_bits == 8 ? portable::kMaxByteCode : portable::kMaxCode;
        const float scale = rounded_up(std::max(largest * (1 / static_cast<float>(max_code)), 0x1p-100f));
        for (int i = begin; i < begin + kQuantBlock; ++i)
            result[static_cast<size_t>(i)] = double{std::nearbyint(x[i] * (1 / scale))} * scale;
    }
    return result;
}

// What q4m's centres lose with codes of 8 bits: they and what they are multiplied with are bfloat16.
double lost_by_centres(const std::vector<double>& row, const PackedWeight& w, int column) {
    constexpr int64_t kBlockBytes = 4 * kPanel + kPanel * kQuantBlock / 2;
    const auto round = [](double x) {
        return double{bfloat_to_float(float_to_bfloat(static_cast<float>(x)))};
    };
    double lost = 0;
    for (int block = 0; block < w.k / kQuantBlock; ++block) {
        const uint8_t* const data = w.data + column / kPanel * w.panel_bytes + block * kBlockBytes;
        const auto* const header = reinterpret_cast<const uint16_t*>(data) + column % kPanel;
        const double centre = 8 * double{half_to_float(header[0])} + half_to_float(header[kPanel]);
        double sum = 0;
        for (int i = 0; i < kQuantBlock; ++i) sum += row[static_cast<size_t>(block * kQuantBlock + i)];
        lost += centre * sum - round(centre) * round(sum);
    }
    return lost;
}

// Every product is rounded into the sum at most three times: links of the chain x half an ulp of the largest
// sum.
void compare(const std::vector<float>& y, const std::vector<float>& x, int64_t ldx, int rows,
             const PackedWeight& w, const Format& format, const std::vector<float>& weights,
             const std::string& what) {
    const int links = is_quantised(w.type) ? 3 * (w.k / kQuantBlock) : w.k;
    for (int r = 0; r < rows; ++r) {
        const std::vector<double> row = rounded(x.data() + r * ldx, w.k, format);
        for (int c = 0; c < w.n; ++c) {
            double sum = 0, magnitude = 0;
            for (int i = 0; i < w.k; ++i) {
                const double product =
                    row[static_cast<size_t>(i)] * weights[static_cast<size_t>(c) * w.k + i];
                sum += product;
                magnitude += std::abs(product);
            }
            if (w.type == WeightType::q4m && format.activation_bits == 8) sum -= lost_by_centres(row, w, c);
            const double tolerance = (links + 2) * 0x1p-24 * magnitude * (w.type == WeightType::q4m ? 2 : 1);
            const float got = y[static_cast<size_t>(r) * w.n + c];
            if (std::abs(got - sum) <= tolerance) continue;
            std::printf("FAIL %s row %d column %d: %.9g, expected %.9g within %.3g\n", what.c_str(), r, c,
                        got, sum, tolerance);
            ++failures;
            return;
        }
    }
}

void expect_same_bits(const float* a, const float* b, size_t count, const std::string& what) {
    if (std::memcmp(a, b, count * sizeof *a) == 0) return;
    std::printf("FAIL %s: bits differ\n", what.c_str());
    ++failures;
}

// Weights around a non-zero mean, so that q4m has minima worth the name.
PackedBuffer random_weight(WeightType type, int n, int k, std::vector<float>& meaning) {
    std::vector<float> source = random_floats(static_cast<size_t>(n) * k, 7);
    for (float& value : source) value += 0.5f;
    PackedBuffer buffer(type, n, k);
    pack_f32(source.data(), k, buffer.view(), buffer.data());
    meaning.resize(source.size());
    unpack(buffer.view(), meaning.data());
    return buffer;
}

void test_shape(const Isa& isa, const Format& format, int n, int k) {
    const int64_t ldx = k + 5;
    const std::vector<float> x = random_floats(130 * static_cast<size_t>(ldx), 3);
    std::vector<float> meaning;
    const PackedBuffer buffer = random_weight(format.type, n, k, meaning);
    const std::string base =
        std::string(isa.name) + " " + format.name() + " N " + std::to_string(n) + " K " + std::to_string(k);
    const std::vector<float> most =
        multiply(*isa.table, 1, x, ldx, 130, buffer.view(), format.activation_bits, base + " M 130");
    compare(most, x, ldx, 130, buffer.view(), format, meaning, base + " M 130");
    for (const int rows : {1, 2, 3, 7, 16, 33, 130}) {
        const std::string what = base + " M " + std::to_string(rows);
        const size_t count = static_cast<size_t>(rows) * n;
        const std::vector<float> one =
            multiply(*isa.table, 1, x, ldx, rows, buffer.view(), format.activation_bits, what);
        expect_same_bits(one.data(), most.data(), count, what + " against the first rows of M 130");
        const std::vector<float> two =
            multiply(*isa.table, 2, x, ldx, rows, buffer.view(), format.activation_bits, what + " threads 2");
        expect_same_bits(one.data(), two.data(), count, what + " threads 1 and 2");
        const std::vector<float> five =
            multiply(*isa.table, 5, x, ldx, rows, buffer.view(), format.activation_bits, what + " threads 5");
        expect_same_bits(one.data(), five.data(), count, what + " threads 1 and 5");
    }
}

// All ISAs agree bit for bit: f32 and f16 are one chain of fma, quantised weights exact integers and then
// fma.
void test_isas_agree(const Format& format) {
    const int n = 40, k = 576, rows = 9;
    const std::vector<float> x = random_floats(static_cast<size_t>(rows) * k, 5);
    std::vector<float> meaning;
    const PackedBuffer buffer = random_weight(format.type, n, k, meaning);
    std::vector<float> first;
    for (const Isa& isa : isas()) {
        if (!isa.supported) continue;
        const std::string what = std::string(isa.name) + " " + format.name();
        const std::vector<float> y =
            multiply(*isa.table, 1, x, k, rows, buffer.view(), format.activation_bits, what);
        if (first.empty()) first = y;
        expect_same_bits(first.data(), y.data(), y.size(), what + " against the widest ISA");
    }
}

// poison: what makes a row NaN.
void test_nan_and_zero_rows(const Isa& isa, const Format& format, float poison) {
    const int n = 40, k = 64;
    std::vector<float> x = random_floats(3 * k, 5), meaning;
    std::fill(x.begin(), x.begin() + k, 0.0f);
    x[k + 40] = poison;
    const PackedBuffer buffer = random_weight(format.type, n, k, meaning);
    const std::string what = std::string(isa.name) + " " + format.name();
    const std::vector<float> y =
        multiply(*isa.table, 1, x, k, 3, buffer.view(), format.activation_bits, what);
    for (int c = 0; c < n; ++c) {
        if (y[static_cast<size_t>(c)] == 0 && std::isnan(y[static_cast<size_t>(n + c)]) &&
            std::isfinite(y[static_cast<size_t>(2 * n + c)]))
            continue;
        std::printf("FAIL %s: a row of zeros, a row with %g or the row behind it is wrong\n", what.c_str(),
                    poison);
        ++failures;
        return;
    }
}

// Every row and panel belongs to exactly one thread, and rows are split only where they are many or panels
// alone leave threads idle.
void test_work_is_divided() {
    for (const int rows : {1, 5, 64, 130, 520})
        for (const int panels : {1, 3, 36, 200})
            for (const int num_threads : {1, 2, 5, 16}) {
                std::vector<int> owners(static_cast<size_t>(rows * panels), 0);
                for (int thread = 0; thread < num_threads; ++thread) {
                    const portable::MatmulPart part =
                        portable::divide_matmul(rows, panels, thread, num_threads);
                    for (int r = part.row_begin; r < part.row_end; ++r)
                        for (int p = part.panel_begin; p < part.panel_end; ++p)
                            ++owners[static_cast<size_t>(r * panels + p)];
                }
                if (std::all_of(owners.begin(), owners.end(), [](int count) { return count == 1; })) continue;
                std::printf("FAIL %d rows x %d panels over %d threads\n", rows, panels, num_threads);
                ++failures;
            }
    const auto first_of_two = [](int rows, int panels) {
        const portable::MatmulPart part = portable::divide_matmul(rows, panels, 0, 2);
        return std::pair(part.row_end, part.panel_end);
    };
    if (first_of_two(100, 200) != std::pair(100, 100) || first_of_two(100, 1) != std::pair(50, 1) ||
        first_of_two(130, 200) != std::pair(65, 200)) {
        std::printf("FAIL the wrong dimension is divided\n");
        ++failures;
    }
}

int bench(int argc, char** argv) {
    const int rows = std::atoi(argv[2]), n = std::atoi(argv[3]), k = std::atoi(argv[4]);
    const WeightType type = find_weight_type(argv[5]);
    const OpTable& isa = argc > 6 ? find_isa(argv[6]) : op_table();
    Team team(std::vector<int>(argc > 7 ? std::strtoul(argv[7], nullptr, 10) : 1, -1));
    const int32_t activation_bits = argc > 8 ? std::atoi(argv[8]) : 14;
    // Enough copies that the weights come from DRAM: 512 MB, or one where many rows make that irrelevant.
    const auto bytes = static_cast<size_t>(packed_bytes(type, n, k));
    const size_t num_copies = rows > 64 ? 1 : std::max<size_t>(1, (size_t{512} << 20) / bytes);
    std::vector<PackedBuffer> weights;
    for (size_t i = 0; i < num_copies; ++i) {
        weights.emplace_back(type, n, k);
        std::memset(weights.back().data(), 0x11, bytes);
    }
    const std::vector<float> x = random_floats(static_cast<size_t>(rows) * k, 3);
    std::vector<float> y(static_cast<size_t>(rows) * n);
    std::vector<uint8_t> scratch(static_cast<size_t>(matmul_scratch_bytes(type, rows, k)) + 64);
    auto* aligned = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    std::vector<double> seconds;
    for (double total = 0; total < 1.0 || seconds.size() < 3;) {
        const MatmulArgs args = {.x = x.data(),
                                 .ldx = k,
                                 .w = weights[seconds.size() % num_copies].view(),
                                 .rows = rows,
                                 .y = y.data(),
                                 .ldy = n,
                                 .scratch = aligned,
                                 .activation_bits = activation_bits};
        const auto start = std::chrono::steady_clock::now();
        team.run([&](const Worker& worker) { isa.matmul(args, worker); });
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        total += seconds.back();
    }
    std::sort(seconds.begin(), seconds.end());
    const double median = seconds[seconds.size() / 2], best = seconds.front();
    std::printf("%s %s M %d N %d K %d threads %d: median %.1f us, best %.1f us", isa.isa, argv[5], rows, n, k,
                team.size(), median * 1e6, best * 1e6);
    std::printf(" = %.1f GB/s of weights, %.1f G products/s\n", static_cast<double>(bytes) / best * 1e-9,
                static_cast<double>(rows) * n * k / best * 1e-9);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 5 && std::string(argv[1]) == "--bench") return bench(argc, argv);
    for (const Isa& isa : isas()) {
        if (!isa.supported) continue;
        for (const Format& format : kFormats) {
            for (const int n : {40, 576})
                for (const int k : {64, 576, 1056}) {
                    // The large shape is left to the others: the portable path takes ten times as long.
                    if (n == 576 && (k == 1056 || std::string(isa.name) == "portable")) continue;
                    test_shape(isa, format, n, k);
                }
            test_nan_and_zero_rows(isa, format, std::nanf(""));
            if (is_quantised(format.type)) test_nan_and_zero_rows(isa, format, 0x1p100f);
        }
    }
    test_work_is_divided();
    for (const Format& format : kFormats) test_isas_agree(format);
    // Odd K: bf16 pads its pairs.
    for (const Isa& isa : isas())
        if (isa.supported)
            for (const WeightType type : {WeightType::f32, WeightType::f16, WeightType::bf16})
                test_shape(isa, {type}, 40, 75);
    std::printf(failures == 0 ? "ok\n" : "%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
