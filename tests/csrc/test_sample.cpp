// sample on every ISA against slow twins: sorted filters, libm logarithms, one token at a time; sharded
// equals alone.
#include <numeric>

#define FASTSERVE_ISA_NAMESPACE portable_in_test
#include "cpu/philox.h"
#include "sample_batch.h"

namespace headers = fastserve::portable_in_test;

namespace {

SampleOut sample_one(const OpTable& ops, const Floats& logits, const SamplingState& state,
                     int32_t output_idx = 0, int32_t target = -1, int threads = 2) {
    return sample_alone(ops, logits, {{&state, output_idx, target}}, threads)[0];
}

// The noise of one token, from its definition.
double slow_noise(uint64_t seed, int32_t output_idx, int32_t id) {
    uint32_t words[4][1] = {
        {static_cast<uint32_t>(id / 64 * 16 + id % 16)}, {static_cast<uint32_t>(output_idx)}, {0}, {0}};
    headers::philox4x32_10(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), words);
    return -std::log(-std::log((static_cast<double>(words[id / 16 % 4][0]) + 0.5) * 0x1p-32));
}

std::vector<double> slow_adjust(const Floats& logits, const SampleRow& row) {
    std::vector<double> x(logits.begin(), logits.end());
    const SamplingState& state = *row.state;
    for (int32_t i = 0; i < state.num_counted; ++i) {
        double& value = x[static_cast<size_t>(state.counted_ids[i])];
        const double r = static_cast<double>(state.repetition_penalty);
        value = value > 0 ? value / r : value * r;
        if (state.counted_output[i] > 0)
            value -= static_cast<double>(state.presence_penalty) +
                     static_cast<double>(state.frequency_penalty) * state.counted_output[i];
    }
    for (int32_t i = 0; i < state.num_bias; ++i)
        x[static_cast<size_t>(state.bias_ids[i])] += static_cast<double>(state.bias_values[i]);
    if (row.output_idx < state.min_tokens)
        for (int32_t i = 0; i < state.num_stop_ids; ++i)
            x[static_cast<size_t>(state.stop_ids[i])] = -INFINITY;
    return x;
}

// The tokens that survive the filters, by sorting.
std::vector<bool> slow_kept(const std::vector<double>& x, const SamplingState& state) {
    std::vector<size_t> order(x.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
    if (state.top_k > 0 && static_cast<size_t>(state.top_k) < order.size())
        order.resize(static_cast<size_t>(state.top_k));
    double total = 0, running = 0;
    for (const size_t id : order) total += std::exp(x[id] - x[order[0]]);
    std::vector<bool> kept(x.size(), false);
    for (const size_t id : order) {
        const double weight = std::exp(x[id] - x[order[0]]);
        if (state.top_p < 1 && running >= static_cast<double>(state.top_p) * total) break;
        running += weight;
        if (weight >= static_cast<double>(state.min_p)) kept[id] = true;
    }
    return kept;
}

int32_t slow_draw(const Floats& logits, const SampleRow& row) {
    std::vector<double> x = slow_adjust(logits, row);
    const SamplingState& state = *row.state;
    if (state.temperature > 0) {
        for (double& value : x) value = static_cast<double>(static_cast<float>(value) / state.temperature);
        const std::vector<bool> kept = slow_kept(x, state);
        for (size_t id = 0; id < x.size(); ++id)
            x[id] = kept[id] ? x[id] + slow_noise(state.seed, row.output_idx, static_cast<int32_t>(id))
                             : -INFINITY;
    }
    return static_cast<int32_t>(std::max_element(x.begin(), x.end()) - x.begin());
}

void draws_as_the_slow_twin(const OpTable& ops) {
    const Batch batch(4);
    std::vector<SampleOut> first;
    for (const int threads : {1, 2, 3}) {
        const std::vector<SampleOut> out = sample_alone(ops, batch.logits, batch.rows, threads);
        if (first.empty()) first = out;
        for (size_t s = 0; s < out.size(); ++s) {
            const SampleRow& row = batch.rows[s];
            CHECK(out[s].token == (row.target >= 0 ? row.target : slow_draw(batch.row(s), row)));
            CHECK(equal(out[s], first[s]));
            CHECK(equal(out[s], sample_alone(ops, batch.row(s), {row}, 3)[0]));  // alone as in the batch
        }
    }
    const OpTable& portable = *isas().back().table;
    const std::vector<SampleOut> reference = sample_alone(portable, batch.logits, batch.rows, 1);
    for (size_t s = 0; s < first.size(); ++s) CHECK(equal(first[s], reference[s]));
}

void logprobs_are_of_the_raw_distribution(const OpTable& ops) {
    const Batch batch(1);
    const std::vector<SampleOut> out = sample_alone(ops, batch.logits, batch.rows, 2);
    for (size_t s = 0; s < out.size(); ++s) {
        const Floats x = batch.row(s);
        const SampleRow& row = batch.rows[s];
        if (row.target < 0 && row.state->num_logprobs < 0) {
            CHECK(out[s].num_top == 0 && out[s].rank == 0);
            continue;
        }
        double sum = 0;
        for (const float value : x) sum += std::exp(static_cast<double>(value));
        const float chosen = x[static_cast<size_t>(out[s].token)];
        CHECK(std::fabs(static_cast<double>(out[s].logprob) - (static_cast<double>(chosen) - std::log(sum))) <
              1e-6);
        CHECK(out[s].rank ==
              1 + std::count_if(x.begin(), x.end(), [&](float value) { return value > chosen; }));
        CHECK(out[s].num_top == std::max(row.state->num_logprobs, 0));
        std::vector<int32_t> order(x.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
            return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
        });
        for (int32_t i = 0; i < out[s].num_top; ++i) {
            CHECK(out[s].top_ids[i] == order[static_cast<size_t>(i)]);
            const double value = static_cast<double>(x[static_cast<size_t>(order[static_cast<size_t>(i)])]);
            CHECK(std::fabs(static_cast<double>(out[s].top_logprobs[i]) - (value - std::log(sum))) < 1e-6);
        }
    }
}

// Greedy on {2.0, 1.9, -1.0}: each adjustment alone turns the winner from token 0 to token 1, and no sooner.
void each_adjustment_does_its_part(const OpTable& ops) {
    const Floats x = {2.0f, 1.9f, -1.0f};
    const int32_t counted_id = 0, twice = 2, never = 0;
    const float bias = -0.2f;
    SamplingState still = plain_state();
    still.temperature = 0.0f;
    const auto winner = [&](const SamplingState& state, int32_t output_idx = 0) {
        return sample_one(ops, x, state, output_idx).token;
    };
    CHECK(winner(still) == 0);
    still.counted_ids = &counted_id;
    still.counted_output = &twice;
    still.num_counted = 1;
    SamplingState state = still;
    state.presence_penalty = 0.09f;  // once, however often the token came
    CHECK(winner(state) == 0);
    state.presence_penalty = 0.11f;
    CHECK(winner(state) == 1);
    state.counted_output = &never;  // a token of the prompt alone
    CHECK(winner(state) == 0);
    state = still;
    state.frequency_penalty = 0.04f;
    CHECK(winner(state) == 0);
    state.frequency_penalty = 0.06f;  // twice 0.06 > 0.1
    CHECK(winner(state) == 1);
    state = still;
    state.counted_output = &never;
    state.repetition_penalty = 1.1f;  // 2.0 / 1.1 < 1.9, for tokens of the prompt too
    CHECK(winner(state) == 1);
    const Floats negative = {-1.0f, -1.05f, -3.0f};
    CHECK(sample_one(ops, negative, state).token == 1);  // and -1.0 * 1.1 < -1.05
    state = plain_state();
    state.temperature = 0.0f;
    state.bias_ids = &counted_id;
    state.bias_values = &bias;
    state.num_bias = 1;
    CHECK(winner(state) == 1);
    state.num_bias = 0;
    state.stop_ids = &counted_id;
    state.num_stop_ids = 1;
    state.min_tokens = 3;
    CHECK(winner(state, 2) == 1 && winner(state, 3) == 0);
}

void ties_and_broken_logits_go_to_the_lowest_id(const OpTable& ops) {
    SamplingState greedy = plain_state(), random = plain_state(), logged = plain_state(),
                  filtered = plain_state();
    greedy.temperature = 0.0f;
    logged.temperature = 0.0f;
    logged.num_logprobs = 20;
    filtered.top_p = 0.5f;
    filtered.top_k = 3;
    Floats x(1000, -1.0f);
    x[130] = x[131] = x[990] = 3.0f;
    x[0] = x[129] = NAN;
    CHECK(sample_one(ops, x, greedy).token == 130 && sample_one(ops, x, logged).token == 130);
    CHECK(sample_one(ops, x, logged).rank == 1 && std::isfinite(sample_one(ops, x, logged).logprob));
    filtered.top_k = 1;
    CHECK(sample_one(ops, x, filtered).token == 130);  // a tie at the cut goes to the lowest id as well
    for (const float broken : {NAN, -INFINITY}) {
        const Floats nothing(1000, broken);
        for (const SamplingState* state : {&greedy, &random, &logged, &filtered})
            CHECK(sample_one(ops, nothing, *state).token == 0);
        CHECK(sample_one(ops, nothing, logged).logprob == -INFINITY);
    }
    x[700] = INFINITY;
    for (const SamplingState* state : {&greedy, &random, &logged, &filtered})
        CHECK(sample_one(ops, x, *state).token == 700);
    CHECK(sample_one(ops, Floats(1, 0.5f), random).token == 0);  // a vocabulary of one
}

// Filters that keep the token that would be drawn without them do not change the draw.
void filters_do_not_change_the_winner_they_keep(const OpTable& ops) {
    const Floats x = random_floats(2000, 31, 3.0f);
    SamplingState free_state = plain_state(), filtered = plain_state();
    filtered.top_p = 0.9f;
    int kept = 0;
    const std::vector<bool> stays = slow_kept(std::vector<double>(x.begin(), x.end()), filtered);
    for (int32_t i = 0; i < 100; ++i) {
        const int32_t free_token = sample_one(ops, x, free_state, i).token;
        const int32_t token = sample_one(ops, x, filtered, i).token;
        CHECK(stays[static_cast<size_t>(token)]);
        if (!stays[static_cast<size_t>(free_token)]) continue;
        CHECK(token == free_token);
        ++kept;
    }
    CHECK(kept > 60 && kept < 100);
}

// 8,000 draws from 6 tokens follow the softmax: chi-square with 5 degrees of freedom, 20.5 is its 99.9 %
// point.
void draws_follow_the_distribution(const OpTable& ops) {
    const Floats x = {0.0f, 1.0f, -1.0f, 2.0f, 0.5f, 1.5f};
    const int num_draws = 8000;
    for (const float temperature : {0.7f, 1.0f}) {
        SamplingState state = plain_state();
        state.temperature = temperature;
        Floats logits;
        std::vector<SampleRow> rows;
        for (int i = 0; i < num_draws; ++i) {
            logits.insert(logits.end(), x.begin(), x.end());
            rows.push_back({&state, i, -1});
        }
        double counts[6] = {}, total = 0, chi_square = 0;
        for (const SampleOut& out : sample_alone(ops, logits, rows, 1)) counts[out.token] += 1;
        for (const float logit : x) total += std::exp(static_cast<double>(logit / temperature));
        for (size_t id = 0; id < x.size(); ++id) {
            const double mean = num_draws * std::exp(static_cast<double>(x[id] / temperature)) / total;
            chi_square += (counts[id] - mean) * (counts[id] - mean) / mean;
        }
        CHECK(chi_square < 20.5);
    }
}

}  // namespace

int main() {
    for_each_isa(draws_as_the_slow_twin);
    for_each_isa(logprobs_are_of_the_raw_distribution);
    for_each_isa(each_adjustment_does_its_part);
    for_each_isa(ties_and_broken_logits_go_to_the_lowest_id);
    for_each_isa(filters_do_not_change_the_winner_they_keep);
    for_each_isa(draws_follow_the_distribution);
    return failures() != 0;
}
