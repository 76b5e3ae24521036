// The row-wise kernels on every ISA against plain double loops: the same bits for any number of threads.
#include <algorithm>
#include <cstring>
#include <tuple>

#include "on_isas.h"

using namespace fastserve;

namespace {

const int kThreadCounts[] = {1, 2, 3};

uint16_t half_bits(float value) {  // for values that a half holds exactly
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const int32_t exponent = static_cast<int32_t>(bits >> 23 & 255) - 127;
    return static_cast<uint16_t>((bits >> 16 & 0x8000) | static_cast<uint32_t>(exponent + 15) << 10 |
                                 (bits >> 13 & 1023));
}

void put16(std::vector<uint8_t>* bytes, uint16_t value) {
    bytes->push_back(static_cast<uint8_t>(value));
    bytes->push_back(static_cast<uint8_t>(value >> 8));
}

// A table of 5 rows in a GGUF layout, and what it stands for.
struct Table {
    int32_t gguf_type;
    std::vector<uint8_t> bytes;
    std::vector<double> weights;
};

Table quantised_table(int32_t gguf_type, int32_t d) {
    Table table{gguf_type, {}, std::vector<double>(static_cast<size_t>(5 * d))};
    std::mt19937 random(3);
    for (int32_t i = 0; i < 5 * d; i += 32) {
        const float scale = 0.0078125f * static_cast<float>(1 + random() % 100);
        const float minimum = -0.25f * static_cast<float>(random() % 8 + 1);
        put16(&table.bytes, half_bits(scale));
        if (gguf_type == 3) put16(&table.bytes, half_bits(minimum));
        double* out = &table.weights[static_cast<size_t>(i)];
        for (int32_t j = 0; j < (gguf_type == 8 ? 32 : 16); ++j) {
            const uint8_t byte = static_cast<uint8_t>(random());
            table.bytes.push_back(byte);
            if (gguf_type == 8) out[j] = static_cast<double>(scale) * static_cast<int8_t>(byte);
            if (gguf_type == 2) out[j] = static_cast<double>(scale) * ((byte & 15) - 8);
            if (gguf_type == 2) out[j + 16] = static_cast<double>(scale) * ((byte >> 4) - 8);
            if (gguf_type == 3)
                out[j] = static_cast<double>(scale) * (byte & 15) + static_cast<double>(minimum);
            if (gguf_type == 3)
                out[j + 16] = static_cast<double>(scale) * (byte >> 4) + static_cast<double>(minimum);
        }
    }
    return table;
}

Table plain_table(int32_t gguf_type, int32_t d) {
    Table table{gguf_type, {}, {}};
    std::mt19937 random(4);
    for (int32_t i = 0; i < 5 * d; ++i) {
        const float value = (random() % 2 ? 0.0625f : -0.5f) * static_cast<float>(random() % 63 + 1);
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        if (gguf_type == 1) put16(&table.bytes, half_bits(value));
        if (gguf_type == 0) put16(&table.bytes, static_cast<uint16_t>(bits));
        if (gguf_type != 1) put16(&table.bytes, static_cast<uint16_t>(bits >> 16));
        table.weights.push_back(static_cast<double>(value));
    }
    return table;
}

void embed_dequantises_every_type(const OpTable& ops) {
    const int32_t d = 96;
    const Ints ids = {4, 0, 4, 2};
    for (const int32_t type : {0, 1, 2, 3, 8, 30}) {
        const bool plain = type < 2 || type == 30;
        const Table table = plain ? plain_table(type, d) : quantised_table(type, d);
        std::vector<double> expected;
        for (const int32_t id : ids)
            expected.insert(expected.end(), &table.weights[static_cast<size_t>(id * d)],
                            &table.weights[static_cast<size_t>(id * d)] + d);
        for (const int threads : kThreadCounts) {
            Floats out(ids.size() * d, -1.0f);
            run_op(ops.embed,
                   EmbedArgs{ids.data(), table.bytes.data(), type,
                             static_cast<int64_t>(table.bytes.size() / 5), 4, d, out.data(), d},
                   threads);
            CHECK(worst_error(out, expected, 1e-3) < 1e-6);
        }
    }
}

void rms_norm_matches_the_formula(const OpTable& ops) {
    for (const int32_t d : {1, 7, 16, 31, 64, 100, 576}) {
        for (const bool has_x : {true, false}) {
            const int32_t rows = 5, ld = d + 3;
            const Floats x = random_floats(static_cast<size_t>(rows * ld), 1),
                         weight = random_floats(static_cast<size_t>(d), 2);
            const Floats before = random_floats(static_cast<size_t>(rows * ld), 3);
            std::vector<double> expected;
            Floats updated = before;
            for (int32_t t = 0; t < rows; ++t) {
                double sum = 0;
                float* row = &updated[static_cast<size_t>(t * ld)];
                for (int32_t i = 0; i < d; ++i) {
                    if (has_x) row[i] += x[static_cast<size_t>(t * ld + i)];
                    sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
                }
                for (int32_t i = 0; i < d; ++i)
                    expected.push_back(static_cast<double>(row[i]) / std::sqrt(sum / d + 1e-5) *
                                       static_cast<double>(weight[static_cast<size_t>(i)]));
            }
            Floats first;
            for (const int threads : kThreadCounts) {
                Floats residual = before, out(static_cast<size_t>(rows * d));
                run_op(ops.rms_norm,
                       RmsNormArgs{has_x ? x.data() : nullptr, ld, residual.data(), ld, weight.data(), 1e-5f,
                                   rows, d, out.data(), d},
                       threads);
                CHECK(worst_error(out, expected, 1e-2) < 2e-6);
                CHECK(residual == updated);
                if (first.empty()) first = out;
                CHECK(out == first);
            }
        }
    }
}

void rotary_is_exact_at_any_position(const OpTable& ops) {
    const int32_t e = 64, heads = 3, kv_heads = 2, rows = 6;
    for (const int32_t rotary_dim : {64, 20}) {
        Floats inv_freq;
        for (int32_t i = 0; i < rotary_dim / 2; ++i)
            inv_freq.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / rotary_dim)));
        const Ints positions = {0, 1, 17, 4095, 131071, 1 << 20};
        const Floats q_before = random_floats(rows * heads * e, 5),
                     k_before = random_floats(rows * kv_heads * e, 6);
        const auto turned = [&](const Floats& x, int32_t num_heads) {
            std::vector<double> out(x.begin(), x.end());
            for (int32_t t = 0; t < rows; ++t)
                for (int32_t h = 0; h < num_heads; ++h)
                    for (int32_t i = 0; i < rotary_dim / 2; ++i) {
                        const double angle = positions[static_cast<size_t>(t)] *
                                             static_cast<double>(inv_freq[static_cast<size_t>(i)]);
                        const size_t at = static_cast<size_t>((t * num_heads + h) * e + 2 * i);
                        const double a = static_cast<double>(x[at]), b = static_cast<double>(x[at + 1]);
                        out[at] = a * std::cos(angle) - b * std::sin(angle);
                        out[at + 1] = a * std::sin(angle) + b * std::cos(angle);
                    }
            return out;
        };
        for (const int threads : kThreadCounts) {
            Floats q = q_before, k = k_before;
            run_op(ops.rotary,
                   RotaryArgs{q.data(), heads * e, k.data(), kv_heads * e, positions.data(), inv_freq.data(),
                              rows, heads, kv_heads, e, rotary_dim},
                   threads);
            CHECK(worst_error(q, turned(q_before, heads), 1.0) < 3e-7);
            CHECK(worst_error(k, turned(k_before, kv_heads), 1.0) < 3e-7);
        }
    }
}

void store_kv_fills_exactly_the_rows_places(const OpTable& ops) {
    const int32_t e = 6, heads = 2, blocks = 4;
    const Ints slots = {1, 1, 0}, positions = {15, 16, 5}, tables = {2, -1, 3, 0};
    const Floats k = random_floats(3 * heads * e, 7), v = random_floats(3 * heads * e, 8);
    const size_t size = static_cast<size_t>(blocks * heads * e * kBlockSize);
    const int32_t expected_block[] = {3, 0, 2};
    for (const int threads : kThreadCounts) {
        Floats kf(size, NAN), vf(size, NAN);
        std::vector<uint16_t> kb(size, 0x7fc0), vb(size, 0x7fc0);
        const KvIndex index{slots.data(), positions.data(), tables.data(), 2};
        run_op(ops.store_kv,
               StoreKvArgs{k.data(),
                           heads * e,
                           v.data(),
                           heads * e,
                           {kf.data(), vf.data(), KvType::f32, blocks, heads, e},
                           index,
                           3},
               threads);
        run_op(ops.store_kv,
               StoreKvArgs{k.data(),
                           heads * e,
                           v.data(),
                           heads * e,
                           {kb.data(), vb.data(), KvType::bf16, blocks, heads, e},
                           index,
                           3},
               threads);
        for (int32_t t = 0; t < 3; ++t)
            for (int32_t h = 0; h < heads; ++h)
                for (int32_t i = 0; i < e; ++i) {
                    const size_t from = static_cast<size_t>((t * heads + h) * e + i);
                    const int32_t key = positions[static_cast<size_t>(t)] % kBlockSize;
                    const int32_t base = (expected_block[t] * heads + h) * e * kBlockSize;
                    CHECK(kf[static_cast<size_t>(base + i * kBlockSize + key)] == k[from]);
                    CHECK(vf[static_cast<size_t>(base + key * e + i)] == v[from]);
                    const uint32_t k_bits =
                        static_cast<uint32_t>(
                            kb[static_cast<size_t>(base + (i / 2 * kBlockSize + key) * 2 + i % 2)])
                        << 16;
                    float k_value;
                    std::memcpy(&k_value, &k_bits, 4);
                    CHECK(static_cast<double>(k_value) == rounded_to_bf16(k[from]));
                }
        const auto is_set = [](float value) { return !std::isnan(value); };
        CHECK(std::count_if(kf.begin(), kf.end(), is_set) == 3 * heads * e);
        CHECK(std::count_if(vf.begin(), vf.end(), is_set) == 3 * heads * e);
        CHECK(std::count_if(kb.begin(), kb.end(), [](uint16_t b) { return b != 0x7fc0; }) == 3 * heads * e);
        CHECK(std::count_if(vb.begin(), vb.end(), [](uint16_t b) { return b != 0x7fc0; }) == 3 * heads * e);
    }
}

void rotary_store_kv_is_both_of_them(const OpTable& ops) {
    const int32_t e = 24, heads = 5, kv_heads = 2, rotary_dim = 20, rows = 7, blocks = 3;
    const Ints slots(rows, 0), positions = {14, 15, 16, 17, 18, 31, 40}, tables = {2, 0, 1};
    const KvIndex index{slots.data(), positions.data(), tables.data(), blocks};
    const Floats inv_freq = random_floats(rotary_dim / 2, 9), v = random_floats(rows * kv_heads * e, 8);
    for (const KvType type : {KvType::f32, KvType::bf16, KvType::int8}) {
        const size_t k_bytes = static_cast<size_t>(blocks * kv_heads * key_block_bytes(type, e)),
                     v_bytes = static_cast<size_t>(blocks * kv_heads * value_block_bytes(type, e));
        const auto run = [&](int threads, auto&& op) {
            Floats q = random_floats(rows * heads * e, 5), k = random_floats(rows * kv_heads * e, 6);
            std::vector<uint8_t> kept(k_bytes + v_bytes);
            const KvCache cache{kept.data(), kept.data() + k_bytes, type, blocks, kv_heads, e};
            const RotaryArgs rotary{q.data(),        heads * e, k.data(), kv_heads * e, positions.data(),
                                    inv_freq.data(), rows,      heads,    kv_heads,     e,
                                    rotary_dim};
            const StoreKvArgs store{k.data(), kv_heads * e, v.data(), kv_heads * e, cache, index, rows};
            op(rotary, store, threads);
            return std::make_tuple(q, k, kept);
        };
        const auto apart = run(1, [&](const RotaryArgs& rotary, const StoreKvArgs& store, int threads) {
            run_op(ops.rotary, rotary, threads);
            run_op(ops.store_kv, store, threads);
        });
        for (const int threads : kThreadCounts)
            CHECK(apart == run(threads, [&](const RotaryArgs& rotary, const StoreKvArgs& store, int count) {
                      run_op(ops.rotary_store_kv, RotaryStoreKvArgs{rotary, store}, count);
                  }));
    }
}

void silu_mul_matches_the_formula(const OpTable& ops) {
    for (const int32_t f : {1, 15, 130, 384}) {
        const int32_t rows = 3;
        Floats x = random_floats(static_cast<size_t>(rows * 2 * f), 9, 20.0f);
        x[0] = -200.0f;
        std::vector<double> expected;
        for (int32_t t = 0; t < rows; ++t)
            for (int32_t i = 0; i < f; ++i) {
                const double gate = static_cast<double>(x[static_cast<size_t>(t * 2 * f + i)]);
                expected.push_back(gate / (1 + std::exp(-gate)) *
                                   static_cast<double>(x[static_cast<size_t>((t * 2 + 1) * f + i)]));
            }
        Floats first;
        for (const int threads : kThreadCounts) {
            Floats out(static_cast<size_t>(rows * f));
            run_op(ops.silu_mul, SiluMulArgs{x.data(), 2 * f, rows, f, out.data(), f}, threads);
            CHECK(worst_error(out, expected, 1e-6) < 1e-6);
            if (first.empty()) first = out;
            CHECK(out == first);
        }
    }
}

void select_rows_copies(const OpTable& ops) {
    const Floats x = random_floats(40, 10);
    const Ints wanted = {3, 0, 3};
    for (const int threads : kThreadCounts) {
        Floats out(21);
        run_op(ops.select_rows, SelectRowsArgs{x.data(), 10, wanted.data(), 3, 7, out.data(), 7}, threads);
        for (size_t s = 0; s < 3; ++s)
            CHECK(std::equal(&out[s * 7], &out[s * 7] + 7, &x[static_cast<size_t>(wanted[s]) * 10]));
    }
}

}  // namespace

int main() {
    for_each_isa(embed_dequantises_every_type);
    for_each_isa(rms_norm_matches_the_formula);
    for_each_isa(rotary_is_exact_at_any_position);
    for_each_isa(store_kv_fills_exactly_the_rows_places);
    for_each_isa(rotary_store_kv_is_both_of_them);
    for_each_isa(silu_mul_matches_the_formula);
    for_each_isa(select_rows_copies);
    return failures() != 0;
}
