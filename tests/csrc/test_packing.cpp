// Packed weights mean what the file's blocks mean, wherever slices are cut and put together; bad arguments
// throw.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "weights/gguf_type.h"
#include "weights/half.h"
#include "weights/packed_buffer.h"
#include "weights/packed_layout.h"
#include "weights/packing.h"

namespace {

using namespace fastserve;

constexpr uint32_t kGgufIds[] = {0, 1, 2, 3, 8, 30};

// Random blocks of [rows, k], with halves and floats that are finite.
std::vector<uint8_t> random_tensor(uint32_t gguf_type, int64_t rows, int64_t k, uint32_t seed) {
    const GgufType& type = *find_gguf_type(gguf_type);
    std::mt19937 draw(seed);
    std::vector<uint8_t> bytes(static_cast<size_t>(rows * k / type.block_weights * type.block_bytes));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(draw());
    std::normal_distribution<float> normal;
    for (size_t at = 0; at < bytes.size(); at += type.block_bytes) {
        const float value = normal(draw);
        if (gguf_type == 0) std::memcpy(&bytes[at], &value, 4);
        const uint16_t half = gguf_type == 30 ? float_to_bfloat(value) : float_to_half(value);
        if (gguf_type != 0) std::memcpy(&bytes[at], &half, 2);
        if (gguf_type == 3) std::memcpy(&bytes[at + 2], &half, 2);
    }
    return bytes;
}

std::vector<float> meaning(uint32_t gguf_type, const std::vector<uint8_t>& tensor, int64_t rows, int64_t k) {
    std::vector<float> values(static_cast<size_t>(rows * k));
    const auto row_bytes = static_cast<int64_t>(tensor.size()) / rows;
    for (int64_t r = 0; r < rows; ++r)
        dequantise_row(gguf_type, tensor.data() + r * row_bytes, k, values.data() + r * k);
    return values;
}

// Two matrices side by side, the second from column 21 on, both cut along K.
void test_slices_keep_their_meaning(uint32_t gguf_type) {
    const int64_t file_k = 160, begin = 32, end = 128, k = end - begin;
    const std::vector<uint8_t> first = random_tensor(gguf_type, 30, file_k, 1);
    const std::vector<uint8_t> second = random_tensor(gguf_type, 9, file_k, 2);
    PackedBuffer buffer(packed_type(gguf_type), 30, k);
    pack_slice({gguf_type, second.data(), file_k, 0, 9, begin, end}, buffer.view(), buffer.data(), 21);
    pack_slice({gguf_type, first.data(), file_k, 4, 25, begin, end}, buffer.view(), buffer.data(), 0);
    std::vector<float> got(static_cast<size_t>(30 * k));
    unpack(buffer.view(), got.data());
    const std::vector<float> a = meaning(gguf_type, first, 30, file_k),
                             b = meaning(gguf_type, second, 9, file_k);
    for (int64_t column = 0; column < 30; ++column) {
        const float* source = column < 21 ? &a[static_cast<size_t>((column + 4) * file_k)]
                                          : &b[static_cast<size_t>((column - 21) * file_k)];
        CHECK(std::memcmp(&got[static_cast<size_t>(column * k)], source + begin,
                          static_cast<size_t>(k) * 4) == 0);
    }
}

// The worst error is half a step of the block's scale, and what the scale loses as a half (2^-11 of each
// weight).
void test_quantising_stays_within_half_a_step(WeightType type, float steps) {
    const int64_t n = 20, k = 64;
    std::mt19937 draw(5);
    std::normal_distribution<float> normal(0.3f);
    std::vector<float> x(static_cast<size_t>(n * k));
    for (float& value : x) value = normal(draw);
    std::fill(x.begin(), x.begin() + kQuantBlock, 0.0f);
    PackedBuffer buffer(type, n, k);
    pack_f32(x.data(), k, buffer.view(), buffer.data());
    std::vector<float> got(x.size());
    unpack(buffer.view(), got.data());
    for (size_t block = 0; block < x.size(); block += kQuantBlock) {
        const auto larger = [](float a, float b) { return std::abs(a) < std::abs(b); };
        const float largest = std::abs(*std::max_element(&x[block], &x[block] + kQuantBlock, larger));
        // q4 has code -8 but not 8: an opposite of nearly the largest magnitude is cut by up to one step.
        const float step = 2 * largest / steps, allowed = step * (type == WeightType::q4 ? 1.0f : 0.5f);
        for (size_t i = block; i < block + kQuantBlock; ++i)
            CHECK(std::abs(got[i] - x[i]) <= allowed * 1.01f + largest * 0x1p-9f);
    }
}

void test_floats_round_to_nearest_even() {
    CHECK(float_to_bfloat(1.00390625f) == 0x3f80);  // halfway between 0x3f80 and 0x3f81
    CHECK(float_to_bfloat(1.01171875f) == 0x3f82);  // halfway between 0x3f81 and 0x3f82
    CHECK(float_to_bfloat(std::nanf("")) == 0x7fc0);
    CHECK(float_to_half(1.00048828125f) == 0x3c00);
    CHECK(half_to_float(1) == 0x1p-24f);
}

void test_float_tensors_go_into_any_type() {
    const std::vector<uint8_t> tensor = random_tensor(0, 16, 64, 4);
    for (const WeightType type : {WeightType::bf16, WeightType::q8, WeightType::q4m}) {
        PackedBuffer sliced(type, 16, 64), whole(type, 16, 64);
        pack_slice({0, tensor.data(), 64, 0, 16, 0, 64}, sliced.view(), sliced.data(), 0);
        pack_f32(reinterpret_cast<const float*>(tensor.data()), 64, whole.view(), whole.data());
        CHECK(std::memcmp(sliced.data(), whole.data(), whole.num_bytes()) == 0);
    }
}

// Memory may hold anything before: a product reads the second of a pair, and 0 times a NaN is one.
void test_an_odd_number_of_bf16_is_ended(uint32_t gguf_type) {
    const int n = 17, k = 3;
    const std::vector<uint8_t> tensor = random_tensor(gguf_type, n, k, 4);
    PackedBuffer buffer(WeightType::bf16, n, k);
    std::memset(buffer.data(), 0xff, static_cast<size_t>(buffer.num_bytes()));
    pack_slice({gguf_type, tensor.data(), k, 0, n, 0, k}, buffer.view(), buffer.data(), 0);
    for (int column = 0; column < n; ++column) {
        const uint8_t* const panel = buffer.data() + column / kPanel * buffer.view().panel_bytes;
        CHECK(load_u16(panel + (k / 2 * kPanel + column % kPanel) * 4 + 2) == 0);
    }
}

// The message names the argument.
template <class Call>
bool blames(const std::string& argument, Call call) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        return std::string(error.what()).starts_with(argument);
    }
    return false;
}

void test_bad_arguments_are_named() {
    const std::vector<uint8_t> tensor = random_tensor(2, 16, 64, 4);
    PackedBuffer buffer(WeightType::q4, 16, 64);
    const WeightSlice good = {2, tensor.data(), 64, 0, 16, 0, 64};
    const auto pack = [&](auto change, int64_t at = 0) {
        WeightSlice slice = good;
        change(slice);
        return [=, &buffer] { pack_slice(slice, buffer.view(), buffer.data(), at); };
    };
    CHECK(blames("gguf_type", pack([](WeightSlice& s) { s.gguf_type = 12; })));
    CHECK(blames("gguf_type", pack([](WeightSlice& s) { s.gguf_type = 8; })));
    CHECK(blames("gguf_type", pack([](WeightSlice& s) { s.gguf_type = 9999; })));
    CHECK(blames("address", pack([](WeightSlice& s) { s.data = nullptr; })));
    CHECK(blames("file_k", pack([](WeightSlice& s) { s.file_k = 65; })));
    CHECK(blames("cols", pack([](WeightSlice& s) { s.col_begin = 32; })));
    CHECK(blames("cols", pack([](WeightSlice& s) { s.col_end = 96; })));
    CHECK(blames("cols", pack([](WeightSlice& s) {
                     s.file_k = 128;
                     s.col_begin = 16;
                     s.col_end = 80;
                 })));
    CHECK(blames("rows", pack([](WeightSlice& s) { s.row_begin = -1; })));
    CHECK(blames("rows", pack([](WeightSlice& s) { s.row_end = 0; })));
    CHECK(blames("at", pack([](WeightSlice& s) { s.row_end = 17; })));
    CHECK(blames("rows", pack([](WeightSlice& s) { s.row_end = INT64_MAX; })));
    CHECK(blames("at", pack([](WeightSlice&) {}, 1)));
    CHECK(blames("at", pack([](WeightSlice&) {}, -1)));
    CHECK(blames("k ", [] { PackedBuffer(WeightType::q8, 16, 33); }));
    CHECK(blames("k ", [] { PackedBuffer(WeightType::f32, 16, 0); }));
    CHECK(blames("n ", [] { PackedBuffer(WeightType::f32, -1, 32); }));
    CHECK(blames("type", [] { find_weight_type("q5"); }));
    const float x[64] = {};
    CHECK(blames("ldx", [&] { pack_f32(x, 63, buffer.view(), buffer.data()); }));
    pack([](WeightSlice&) {})();
}

}  // namespace

int main() {
    for (const uint32_t gguf_type : kGgufIds) test_slices_keep_their_meaning(gguf_type);
    test_quantising_stays_within_half_a_step(WeightType::q8, 254);
    test_quantising_stays_within_half_a_step(WeightType::q4, 16);
    test_quantising_stays_within_half_a_step(WeightType::q4m, 15);
    test_floats_round_to_nearest_even();
    test_float_tensors_go_into_any_type();
    for (const uint32_t gguf_type : {0, 30}) test_an_odd_number_of_bf16_is_ended(gguf_type);
    test_bad_arguments_are_named();
    return failures() == 0 ? 0 : 1;
}
