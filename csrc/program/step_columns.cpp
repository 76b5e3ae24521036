#include "program/step_columns.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fastserve {

namespace {

size_t bytes_of(ColumnType type) {
    return type == ColumnType::i64 ? 8 : 4;
}

void require_within(const char* name, int32_t value, int32_t low, int32_t high) {
    if (value < low || value > high)
        throw std::invalid_argument(std::string(name) + " must be in [" + std::to_string(low) + ", " +
                                    std::to_string(high) + "], got " + std::to_string(value));
}

// Columns by name, at their places in the buffer.
class Columns {
  public:
    Columns(const SlotLimits& limits, void* buffer) : limits_(limits), at_(static_cast<uint8_t*>(buffer)) {}

    template <typename T, typename ValueOf>
    void fill(std::string_view name, int32_t num_values, int32_t num_padded, T padding, ValueOf value_of) {
        T* column = reinterpret_cast<T*>(find(name));
        for (int32_t i = 0; i < num_values; ++i) column[i] = value_of(i);
        for (int32_t i = num_values; i < num_padded; ++i) column[i] = padding;
    }

  private:
    uint8_t* find(std::string_view name) const {
        uint8_t* at = at_;
        for (const StepColumn& column : kStepColumns) {
            if (column.name == name) return at;
            at += bytes_of(column.type) * (column.of_samples ? limits_.max_samples : limits_.max_tokens);
        }
        throw std::logic_error("no column " + std::string(name));
    }

    const SlotLimits& limits_;
    uint8_t* at_;
};

}  // namespace

int64_t step_columns_bytes(const SlotLimits& limits) {
    int64_t bytes = 0;
    for (const StepColumn& column : kStepColumns)
        bytes += static_cast<int64_t>(bytes_of(column.type)) *
                 (column.of_samples ? limits.max_samples : limits.max_tokens);
    return bytes;
}

void write_step_columns(const SlotTable& slots, int32_t num_rows, int32_t num_samples, void* columns) {
    const SlotLimits& limits = slots.limits();
    require_within("num_rows", num_rows, slots.num_tokens(), limits.max_tokens);
    require_within("num_samples", num_samples, slots.num_samples(), limits.max_samples);
    const int32_t rows = slots.num_tokens(), samples = slots.num_samples();
    const KvIndex index = slots.kv_index(0);
    const auto state = [&](int32_t i) -> const SamplingState& { return *slots.samples()[i].state; };

    Columns to(limits, columns);
    to.fill<int32_t>("token_ids", rows, num_rows, 0, [&](int32_t i) { return slots.token_ids()[i]; });
    to.fill<int32_t>("positions", rows, num_rows, 0, [&](int32_t i) { return index.positions[i]; });
    to.fill<int32_t>("row_slot", rows, num_rows, limits.num_slots,
                     [&](int32_t i) { return index.row_slot[i]; });
    to.fill<int32_t>("sample_rows", samples, num_samples, 0,
                     [&](int32_t i) { return slots.sample_rows()[i]; });
    to.fill<int32_t>("output_idx", samples, num_samples, 0,
                     [&](int32_t i) { return slots.samples()[i].output_idx; });
    to.fill<int64_t>("seed", samples, num_samples, 0,
                     [&](int32_t i) { return static_cast<int64_t>(state(i).seed); });
    to.fill<int32_t>("top_k", samples, num_samples, 0, [&](int32_t i) { return state(i).top_k; });
    to.fill<float>("temperature", samples, num_samples, 0.0f,
                   [&](int32_t i) { return state(i).temperature; });
    to.fill<float>("top_p", samples, num_samples, 1.0f, [&](int32_t i) { return state(i).top_p; });
    to.fill<float>("min_p", samples, num_samples, 0.0f, [&](int32_t i) { return state(i).min_p; });
}

LogitEdits logit_edits(const SlotTable& slots) {
    LogitEdits edits;
    for (int32_t row = 0; row < slots.num_samples(); ++row) {
        const SampleRow& sample = slots.samples()[row];
        if (sample.target >= 0) continue;
        const SamplingState& state = *sample.state;
        for (int32_t i = 0; i < state.num_counted; ++i) {
            edits.penalty_rows.push_back(row);
            edits.penalty_ids.push_back(state.counted_ids[i]);
            edits.output_counts.push_back(state.counted_output[i]);
            edits.repetition.push_back(state.repetition_penalty);
            edits.presence.push_back(state.presence_penalty);
            edits.frequency.push_back(state.frequency_penalty);
        }
        for (int32_t i = 0; i < state.num_bias; ++i) {
            edits.bias_rows.push_back(row);
            edits.bias_ids.push_back(state.bias_ids[i]);
            edits.biases.push_back(state.bias_values[i]);
        }
        if (sample.output_idx >= state.min_tokens) continue;
        for (int32_t i = 0; i < state.num_stop_ids; ++i) {
            edits.ban_rows.push_back(row);
            edits.ban_ids.push_back(state.stop_ids[i]);
        }
    }
    return edits;
}

}  // namespace fastserve
