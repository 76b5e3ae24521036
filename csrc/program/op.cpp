#include "program/op.h"

#include <algorithm>
#include <iterator>

#include "program/kv_type.h"
#include "weights/packed_layout.h"

namespace fastserve {

namespace {

// In the order of OpArgs.
constexpr const char* kOpNames[] = {"embed",       "rms_norm",          "matmul",          "rotary",
                                    "store_kv",    "rotary_store_kv",   "paged_attention", "silu_mul",
                                    "select_rows", "matmul_all_reduce", "sample"};
static_assert(std::size(kOpNames) == std::variant_size_v<OpArgs>);

constexpr int64_t kFloatBytes = sizeof(float);

// Read or written once: activations of so many values a row.
OpCost of_values(int64_t rows, int64_t values, int64_t operations_per_value = 0) {
    return {kFloatBytes * rows * values, rows * values * operations_per_value};
}

OpCost cost_of_matmul(const MatmulArgs& a, int64_t rows) {
    const int64_t columns = a.epilogue == Epilogue::silu_mul ? a.w.n / 2 : a.w.n;  // that are written
    return {packed_bytes(a.w.type, a.w.n, a.w.k) + kFloatBytes * rows * (a.w.k + columns),
            2 * rows * a.w.n * a.w.k};
}

int64_t token_bytes(const KvCache& cache) {
    return cache.num_kv_heads *
           (key_block_bytes(cache.type, cache.head_dim) + value_block_bytes(cache.type, cache.head_dim)) /
           kBlockSize;
}

OpCost cost_of_rotary(const RotaryArgs& a, int64_t rows) {
    return of_values(rows, 2LL * (a.num_heads + a.num_kv_heads) * a.head_dim, 2);
}

OpCost cost_of_store(const StoreKvArgs& a, int64_t rows) {
    const int64_t values = 2LL * a.cache.num_kv_heads * a.cache.head_dim;
    return {rows * (values * kFloatBytes + token_bytes(a.cache)), 0};
}

// Rows of a slot that follow each other share what they read of its keys and values.
OpCost cost_of_attention(const PagedAttentionArgs& a, int64_t rows) {
    const int64_t width = int64_t{a.num_heads} * a.cache.head_dim;
    int64_t read = 0, seen = 0;
    for (int64_t t = 0; t < rows; ++t) {
        const int64_t end = int64_t{a.index.positions[t]} + 1;
        const int64_t begin = a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0;
        seen += end - begin;
        const bool shares = t > 0 && a.index.row_slot[t] == a.index.row_slot[t - 1];
        read += shares ? 1 : end - begin;
    }
    return {read * token_bytes(a.cache) + 2 * kFloatBytes * rows * width, 4 * seen * width};
}

std::string product_shape(const PackedWeight& w) {
    return std::string(weight_type_name(w.type)) + " " + std::to_string(w.n) + "x" + std::to_string(w.k);
}

std::string rotary_shape(const RotaryArgs& a) {
    return std::to_string((a.num_heads + a.num_kv_heads) * a.head_dim);
}

const char* arithmetic_of_weight(WeightType type) {
    if (is_quantised(type)) return "int8";
    return type == WeightType::bf16 ? "bf16" : "f32";
}

}  // namespace

const char* name_of(const OpArgs& args) {
    return kOpNames[args.index()];
}

bool is_op_name(const std::string& name) {
    return std::find(std::begin(kOpNames), std::end(kOpNames), name) != std::end(kOpNames);
}

OpCost cost_of(const OpArgs& args, int64_t rows) {
    return std::visit(
        Overloaded{
            [&](const EmbedArgs& a) { return OpCost{rows * (a.row_bytes + kFloatBytes * a.d), 0}; },
            [&](const RmsNormArgs& a) { return of_values(rows, a.d * (a.x != nullptr ? 4 : 2), 1); },
            [&](const MatmulArgs& a) { return cost_of_matmul(a, rows); },
            [&](const RotaryArgs& a) { return cost_of_rotary(a, rows); },
            [&](const StoreKvArgs& a) { return cost_of_store(a, rows); },
            [&](const RotaryStoreKvArgs& a) {
                const OpCost rotary = cost_of_rotary(a.rotary, rows), store = cost_of_store(a.store, rows);
                return OpCost{rotary.num_bytes + store.num_bytes, rotary.num_operations};
            },
            [&](const PagedAttentionArgs& a) { return cost_of_attention(a, rows); },
            [&](const SiluMulArgs& a) { return of_values(rows, 3LL * a.f, 1); },
            [&](const SelectRowsArgs& a) { return of_values(rows, 2LL * a.d); },
            [&](const MatmulAllReduceArgs& a) { return cost_of_matmul(a.matmul, rows); },
            [&](const SampleArgs& a) { return of_values(rows, a.n, 1); },
        },
        args);
}

std::string shape_of(const OpArgs& args) {
    return std::visit(
        Overloaded{
            [](const EmbedArgs& a) { return std::to_string(a.d); },
            [](const RmsNormArgs& a) { return std::to_string(a.d); },
            [](const MatmulArgs& a) { return product_shape(a.w); },
            [](const RotaryArgs& a) { return rotary_shape(a); },
            [](const StoreKvArgs& a) { return std::to_string(a.cache.num_kv_heads * a.cache.head_dim); },
            [](const RotaryStoreKvArgs& a) { return rotary_shape(a.rotary); },
            [](const PagedAttentionArgs& a) {
                return std::string(kv_type_name(a.cache.type)) + " " + std::to_string(a.num_heads) + "x" +
                       std::to_string(a.cache.head_dim);
            },
            [](const SiluMulArgs& a) { return std::to_string(a.f); },
            [](const SelectRowsArgs& a) { return std::to_string(a.d); },
            [](const MatmulAllReduceArgs& a) { return product_shape(a.matmul.w); },
            [](const SampleArgs& a) { return std::to_string(a.n); },
        },
        args);
}

const char* arithmetic_of(const OpArgs& args) {
    if (const auto* matmul = std::get_if<MatmulArgs>(&args)) return arithmetic_of_weight(matmul->w.type);
    if (const auto* matmul = std::get_if<MatmulAllReduceArgs>(&args))
        return arithmetic_of_weight(matmul->matmul.w.type);
    const auto* attention = std::get_if<PagedAttentionArgs>(&args);
    return attention != nullptr ? kv_type_name(attention->cache.type) : "f32";
}

}  // namespace fastserve
