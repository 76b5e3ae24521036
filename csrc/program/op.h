// An op of a program: its arguments, what they are called and what they cost.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include "ops.h"

namespace fastserve {

// For std::visit: a lambda for each kind of op.
template <class... Fs>
struct Overloaded : Fs... {
    using Fs::operator()...;
};
template <class... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

// What the row count of an op follows.
enum class Rows : int32_t { tokens, samples };

using OpArgs = std::variant<EmbedArgs, RmsNormArgs, MatmulArgs, RotaryArgs, StoreKvArgs, RotaryStoreKvArgs,
                            PagedAttentionArgs, SiluMulArgs, SelectRowsArgs, MatmulAllReduceArgs, SampleArgs>;

struct Op {
    Rows rows;
    OpArgs args;
};

// As ops.h names it.
const char* name_of(const OpArgs& args);
// Whether an op has that name.
bool is_op_name(const std::string& name);

// What an op must do at least, for `rows` rows.
struct OpCost {
    int64_t num_bytes;       // of weights, keys and values and activations, each once
    int64_t num_operations;  // a product and its addition are two
};
OpCost cost_of(const OpArgs& args, int64_t rows);

// "q4m 3072x576" for a matmul, "int8 9x64" for attention, "576" where there is but a width.
std::string shape_of(const OpArgs& args);
// Of its products: "f32", "bf16" or "int8".
const char* arithmetic_of(const OpArgs& args);

}  // namespace fastserve
