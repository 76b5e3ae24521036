// A step's rows as columns, for ranks on GPUs: one buffer of 32-bit words (seeds take two) that goes to the
// device in one copy, and, where a row asks for them, the edits of its logits as lists of entries.
//
// The columns lie at fixed places for the largest step, in the order of kStepColumns. Rows beyond a step's
// own are padding, up to the size of the CUDA graph that will run them: a token of a slot that nobody has,
// drawn greedily.
#pragma once

#include <cstdint>
#include <vector>

#include "program/slots.h"

namespace fastserve {

enum class ColumnType : int32_t { i32, i64, f32 };

struct StepColumn {
    const char* name;
    ColumnType type;
    bool of_samples;  // a value per sampled row, else per row
};

inline constexpr StepColumn kStepColumns[] = {
    {"seed", ColumnType::i64, true},        {"token_ids", ColumnType::i32, false},
    {"positions", ColumnType::i32, false},  {"row_slot", ColumnType::i32, false},
    {"sample_rows", ColumnType::i32, true}, {"top_k", ColumnType::i32, true},
    {"output_idx", ColumnType::i32, true},  {"temperature", ColumnType::f32, true},
    {"top_p", ColumnType::f32, true},       {"min_p", ColumnType::f32, true},
};

int64_t step_columns_bytes(const SlotLimits& limits);

// Writes the step that `slots` has laid out, with padding up to num_rows rows and num_samples sampled rows.
// Throws std::invalid_argument where the step has more, or the limits are lower.
void write_step_columns(const SlotTable& slots, int32_t num_rows, int32_t num_samples, void* columns);

// What is done to logits before a token is drawn, entry by entry: penalties, then biases, then bans. A row
// has no token twice in a list.
struct LogitEdits {
    std::vector<int32_t> penalty_rows, penalty_ids, output_counts;
    std::vector<float> repetition, presence, frequency;
    std::vector<int32_t> bias_rows, bias_ids;
    std::vector<float> biases;
    std::vector<int32_t> ban_rows, ban_ids;
};

LogitEdits logit_edits(const SlotTable& slots);

}  // namespace fastserve
