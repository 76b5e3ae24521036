// One row of logits: what a request's parameters do to it, and what is reported of it.
#pragma once

#include <cstdint>

#include "cpu/sample_draw.h"
#include "cpu/sample_filter.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

constexpr float kMaxLogit = 3.402823466e38f;

// Below this a division would leave nothing but the likeliest token.
constexpr float kMinTemperature = 1e-5f;

[[gnu::always_inline]] inline bool is_greedy(const SamplingState& state) {
    return !(state.temperature >= kMinTemperature);
}

[[gnu::always_inline]] inline bool is_filtered(const SamplingState& state) {
    return state.top_k > 0 || state.top_p < 1.0f || state.min_p > 0.0f;
}

// Whether the row's outcome depends on the whole distribution, not on the best score alone.
[[gnu::always_inline]] inline bool needs_whole_row(const SampleRow& row) {
    const SamplingState& state = *row.state;
    return row.target >= 0 || state.num_logprobs >= 0 || (!is_greedy(state) && is_filtered(state));
}

// Repetition, presence and frequency penalties, logit bias, and the ban of stop ids, on columns
// [first_id, first_id + n) of a row.
inline static void adjust_logits(float* logits, int32_t first_id, int32_t n, const SampleRow& row) {
    const SamplingState& state = *row.state;
    const auto column_of = [=](int32_t id) {
        return id >= first_id && id < first_id + n ? id - first_id : -1;
    };
    for (int32_t i = 0; i < state.num_counted; ++i) {
        const int32_t column = column_of(state.counted_ids[i]);
        if (column < 0) continue;
        const int32_t count = state.counted_output[i];
        float x = logits[column];
        x = x > 0.0f ? x / state.repetition_penalty : x * state.repetition_penalty;
        if (count > 0) {
            x -= state.frequency_penalty * static_cast<float>(count);
            x -= state.presence_penalty;
        }
        logits[column] = x;
    }
    for (int32_t i = 0; i < state.num_bias; ++i) {
        const int32_t column = column_of(state.bias_ids[i]);
        if (column >= 0) logits[column] += state.bias_values[i];
    }
    if (row.output_idx >= state.min_tokens) return;
    for (int32_t i = 0; i < state.num_stop_ids; ++i) {
        const int32_t column = column_of(state.stop_ids[i]);
        if (column >= 0) logits[column] = kNoScore;
    }
}

// out = logits / temperature, without NaN (-inf instead), +inf (the largest float) and -0; out may be logits.
inline static void divide_by_temperature(const float* logits, int32_t n, float temperature, float* out) {
    for (int32_t i = 0; i < n; ++i) {
        const float x = logits[i] / temperature;
        const float bounded = x < kMaxLogit ? x : kMaxLogit;
        out[i] = (x == x ? bounded : kNoScore) + 0.0f;
    }
}

// The draw from columns [first_id, first_id + n) without filters; overwrites the logits.
inline static Candidate draw_plain(float* logits, int32_t first_id, int32_t n, const SampleRow& row) {
    const SamplingState& state = *row.state;
    adjust_logits(logits, first_id, n, row);
    if (is_greedy(state)) return draw_greedy(logits, first_id, n);
    divide_by_temperature(logits, n, state.temperature, logits);
    return draw_random(logits, first_id, n, state.seed, row.output_idx);
}

// Scratch of one thread, each [V].
struct RowScratch {
    float* x;
    float* weights;
    int32_t* ids;
};

// The draw from a whole row, which is left as it is.
inline static int32_t draw_whole(const float* logits, int32_t n, const SampleRow& row,
                                 const RowScratch& scratch) {
    const SamplingState& state = *row.state;
    __builtin_memcpy(scratch.x, logits, sizeof(float) * static_cast<size_t>(n));
    adjust_logits(scratch.x, 0, n, row);
    if (is_greedy(state)) return draw_greedy(scratch.x, 0, n).id;
    divide_by_temperature(scratch.x, n, state.temperature, scratch.x);
    if (is_filtered(state)) apply_filters(scratch.x, n, state, scratch.weights, scratch.ids);
    return draw_random(scratch.x, 0, n, state.seed, row.output_idx).id;
}

// The likeliest tokens, ties by the lower id first. x [n] holds no NaN.
inline static void report_top(const float* x, int32_t n, int32_t num_top, double log_sum, SampleOut* out) {
    out->num_top = 0;
    if (num_top == 0) return;
    int32_t found = 0;
    float values[kMaxTopLogprobs];
    for (int32_t i = 0; i < n; ++i) {
        if (found == num_top && !(x[i] > values[found - 1])) continue;
        int32_t at = found < num_top ? found++ : found - 1;
        for (; at > 0 && x[i] > values[at - 1]; --at) {
            values[at] = values[at - 1];
            out->top_ids[at] = out->top_ids[at - 1];
        }
        values[at] = x[i];
        out->top_ids[at] = i;
    }
    out->num_top = found;
    for (int32_t i = 0; i < found; ++i)
        out->top_logprobs[i] = values[i] > kNoScore ? static_cast<float>(values[i] - log_sum) : kNoScore;
}

// log_softmax of the raw logits at out->token, its rank, and the likeliest tokens.
inline static void report_logprobs(const float* logits, int32_t n, int32_t num_logprobs,
                                   const RowScratch& scratch, SampleOut* out) {
    float* x = scratch.x;
    divide_by_temperature(logits, n, 1.0f, x);  // for its cleaning
    const float highest = draw_greedy(x, 0, n).score;
    double log_sum = 0.0;
    if (highest > kNoScore)
        log_sum = static_cast<double>(highest) + log_positive(weigh(x, n, highest, scratch.weights));
    const float value = x[out->token];
    int32_t num_greater = 0;
    for (int32_t i = 0; i < n; ++i) num_greater += x[i] > value ? 1 : 0;
    out->logprob = value > kNoScore ? static_cast<float>(static_cast<double>(value) - log_sum) : kNoScore;
    out->rank = 1 + num_greater;
    const int32_t limit = n < kMaxTopLogprobs ? n : kMaxTopLogprobs;
    report_top(x, n, num_logprobs < limit ? num_logprobs : limit, log_sum, out);
}

// Everything about a row that needs the whole distribution. logits [n] are left as they are.
inline static void sample_whole_row(const float* logits, int32_t n, const SampleRow& row,
                                    const RowScratch& scratch, SampleOut* out) {
    const int32_t num_logprobs = row.state->num_logprobs;
    out->token =
        row.target >= 0 ? (row.target < n ? row.target : n - 1) : draw_whole(logits, n, row, scratch);
    out->logprob = 0.0f;
    out->rank = 0;
    out->num_top = 0;
    if (row.target >= 0 || num_logprobs >= 0)
        report_logprobs(logits, n, num_logprobs > 0 ? num_logprobs : 0, scratch, out);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
