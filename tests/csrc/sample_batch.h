// A batch of requests of every kind, as the tests of the sample op run it.
#pragma once

#include <algorithm>
#include <cstring>

#include "on_isas.h"

using namespace fastserve;

inline SamplingState plain_state() {
    SamplingState state{};
    state.temperature = 1.0f;
    state.top_p = 1.0f;
    state.repetition_penalty = 1.0f;
    state.num_logprobs = -1;
    state.seed = 42;
    return state;
}

// One row per state; output_idx counts up, so that each draws anew.
inline std::vector<SampleOut> sample_alone(const OpTable& ops, const Floats& logits,
                                           const std::vector<SampleRow>& rows, int threads) {
    const int32_t num_rows = static_cast<int32_t>(rows.size()),
                  v = static_cast<int32_t>(logits.size()) / num_rows;
    Floats copy = logits, scratch(static_cast<size_t>(sample_scratch_bytes(threads, v)) / 4, NAN);
    std::vector<SampleOut> out(rows.size());
    run_op(ops.sample,
           SampleArgs{copy.data(), v, num_rows, v, 0, v, rows.data(), nullptr, scratch.data(), out.data()},
           threads);
    return out;
}

inline bool equal(const SampleOut& a, const SampleOut& b) {
    return a.token == b.token && std::memcmp(&a.logprob, &b.logprob, 4) == 0 && a.rank == b.rank &&
           a.num_top == b.num_top && std::equal(a.top_ids, a.top_ids + a.num_top, b.top_ids) &&
           std::memcmp(a.top_logprobs, b.top_logprobs, sizeof(float) * static_cast<size_t>(a.num_top)) == 0;
}

inline const int32_t kStopIds[] = {0, 5, 200};
inline const int32_t kBiasIds[] = {3, 64, 299};
inline const float kBiases[] = {2.0f, -100.0f, 5.5f};
inline const int32_t kCountedIds[] = {7, 3, 120, 5, 299};
inline const int32_t kCountedOutput[] = {0, 2, 1, 5, 0};

// Every kind of request.
inline std::vector<SamplingState> all_states() {
    std::vector<SamplingState> states;
    for (const float temperature : {0.0f, 0.3f, 1.0f, 2.5f})
        for (int kind = 0; kind < 9; ++kind) {
            SamplingState state = plain_state();
            state.temperature = temperature;
            state.seed = 1234567890123456789ull + static_cast<uint64_t>(kind);
            if (kind == 1 || kind == 6) state.top_k = kind * 4 + 1;
            if (kind == 2 || kind == 6) state.top_p = 0.7f;
            if (kind == 3 || kind == 6) state.min_p = 0.1f;
            if (kind == 4 || kind == 7) state.num_logprobs = kind == 4 ? 5 : 0;
            if (kind >= 5) {
                state.repetition_penalty = 1.3f;
                state.presence_penalty = 0.6f;
                state.frequency_penalty = 0.25f;
                state.counted_ids = kCountedIds;
                state.counted_output = kCountedOutput;
                state.num_counted = 5;
                state.bias_ids = kBiasIds;
                state.bias_values = kBiases;
                state.num_bias = 3;
                state.stop_ids = kStopIds;
                state.num_stop_ids = 3;
                state.min_tokens = 20;
            }
            if (kind == 8) state.top_p = 1e-6f;
            states.push_back(state);
        }
    return states;
}

// Rows of all kinds, some of them scores of a given token; logits on a coarse grid, so that many tie.
struct Batch {
    std::vector<SamplingState> states = all_states();
    std::vector<SampleRow> rows;
    int32_t v = 300;
    Floats logits;

    explicit Batch(int copies) {
        for (int i = 0; i < copies; ++i)
            for (const SamplingState& state : states)
                rows.push_back({&state, static_cast<int32_t>(rows.size()), rows.size() % 11 == 3 ? 17 : -1});
        logits = random_floats(rows.size() * static_cast<size_t>(v), 21, 6.0f);
        for (float& logit : logits) logit = std::round(logit * 8.0f) / 8.0f;
    }
    Floats row(size_t s) const {
        return Floats(logits.begin() + static_cast<long>(s) * v,
                      logits.begin() + static_cast<long>(s + 1) * v);
    }
};
