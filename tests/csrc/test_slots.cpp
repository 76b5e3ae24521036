// The slot table applies changes, lays out rows, counts tokens, and refuses every message that breaks a rule.
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "program/slots.h"

using namespace fastserve;
using Words = std::vector<int32_t>;

namespace {

SlotLimits limits() {
    return {.max_tokens = 32,
            .max_samples = 4,
            .num_slots = 3,
            .max_blocks = 2,
            .vocab_size = 100,
            .num_blocks = {8}};
}

int32_t bits(float value) {
    int32_t word;
    std::memcpy(&word, &value, 4);
    return word;
}

// Greedy, of an output of 1000 tokens; it does not speculate.
Words opening(int32_t slot, int32_t num_prompt, float presence) {
    return {slot,           num_prompt, 1000, 0, bits(0), 0,  bits(1), bits(0), bits(1),
            bits(presence), bits(0),    7,    0, 0,       -1, 0,       0};
}

Words join(std::initializer_list<Words> parts) {
    Words all;
    for (const Words& part : parts) all.insert(all.end(), part.begin(), part.end());
    return all;
}

void feed(SlotTable& table, const Words& words) {
    table.apply(words.data(), words.size());
}

const Words kFirstStep =
    join({{1, 0, 1, 1, 0, 1, 0}, opening(2, 3, 0.5f), {2, 0, 5}, {2, 3, 1, 0, 10, 11, 10}});

void rows_follow_chunks_and_decodes() {
    SlotTable table(limits());
    feed(table, kFirstStep);
    CHECK(table.num_tokens() == 3 && table.num_samples() == 1);
    CHECK(table.sample_rows()[0] == 2 && table.samples()[0].output_idx == 0);
    const KvIndex index = table.kv_index(0);
    CHECK(index.tables[2 * index.max_blocks] == 5 && index.positions[2] == 2 && index.row_slot[0] == 2);
    CHECK(table.samples()[0].state->num_counted == 2);  // distinct tokens; none of the output yet
    CHECK(table.samples()[0].state->counted_output[0] == 0);
    table.sampled()[0] = {.token = 42};
    table.commit();
    feed(table, {2, 0, 0, 0, 0, 0, 1, 2});
    CHECK(table.num_tokens() == 1 && table.token_ids()[0] == 42 && table.samples()[0].output_idx == 1);
    CHECK(table.samples()[0].state->num_counted == 3 && table.samples()[0].state->counted_output[2] == 1);
    table.sampled()[0] = {.token = 43};
    table.commit();
    feed(table, {3, 0, 0, 0, 0, 0, -1});  // the same slots again
    CHECK(table.token_ids()[0] == 43 && table.kv_index(0).positions[0] == 4);
}

void a_recomputed_slot_stands_where_it_stood() {
    SlotTable table(limits());
    const Words step =
        join({{1, 0, 1, 1, 0, 1, 0}, opening(0, 2, 0.5f), {0, 0, 1}, {0, 4, 1, 0, 10, 11, 42, 43}});
    feed(table, step);
    CHECK(table.samples()[0].output_idx == 2);
    CHECK(table.samples()[0].state->num_counted == 4 && table.samples()[0].state->counted_output[3] == 1);
}

constexpr int32_t kMaxTokensWord = 2, kSpeculatesWord = 3;

// Slot 0 with two blocks and the budget of three drafts, whatever the match: 1 2 3 4 1 2 -> `drawn`.
SlotTable& speculating(SlotTable& table, int32_t drawn, float presence, int32_t max_tokens = 1000) {
    Words open = opening(0, 6, presence);
    open[kMaxTokensWord] = max_tokens;
    open[kSpeculatesWord] = 1;
    feed(table, join({{1, 0, 1, 2, 1, 1, 0},
                      open,
                      {0, 0, 1, 0, 0, 2},
                      {0, 3, 3, 3, 3},
                      {0, 6, 1, 0, 1, 2, 3, 4, 1, 2}}));
    table.sampled()[0].token = drawn;
    table.commit();
    return table;
}

void run_decode(SlotTable& table, const Words& drawn) {
    feed(table, {2, 0, 0, 0, 0, 0, 1, 0});
    CHECK(table.num_samples() == static_cast<int32_t>(drawn.size()));
    for (size_t i = 0; i < drawn.size(); ++i) table.sampled()[i] = {.token = drawn[i]};
    table.commit();
}

Words kept_tokens(const SlotTable& table) {
    Words words, tokens;
    table.encode_result(9, words);
    size_t at = 4 + 3 * words[2];
    for (int32_t i = 0; i < words[3]; ++i, at += 6) tokens.push_back(words[at + 1]);
    CHECK(at == words.size());
    return tokens;
}

void drafts_are_rows_that_draw() {
    SlotTable table(limits());
    feed(speculating(table, 3, 0), {2, 0, 0, 0, 0, 0, 1, 0});
    CHECK(table.num_tokens() == 4 && table.num_samples() == 4);
    const Words tokens(table.token_ids(), table.token_ids() + 4);
    CHECK((tokens == Words{3, 4, 1, 2}));
    for (int32_t i = 0; i < 4; ++i) {
        CHECK(table.kv_index(0).positions[i] == 6 + i && table.kv_index(0).row_slot[i] == 0);
        CHECK(table.sample_rows()[i] == i && table.samples()[i].output_idx == 1 + i);
    }
}

void drafts_that_were_drawn_are_kept_and_the_rest_is_rolled_back() {
    SlotTable table(limits());
    run_decode(speculating(table, 3, 0), {4, 1, 50, 60});  // the third draft, 2, was not drawn
    CHECK((kept_tokens(table) == Words{4, 1, 50}));
    Words words;
    table.encode_result(9, words);
    CHECK(words[2] == 1 && words[4] == 0 && words[5] == 1 &&
          words[6] == 3);  // slot 0, a match of 3, 3 drafts
    feed(table, {3, 0, 0, 0, 0, 0, -1});
    CHECK(table.num_tokens() == 1 && table.token_ids()[0] == 50);  // nothing ever followed 1 50
    CHECK(table.kv_index(0).positions[0] == 9 && table.samples()[0].output_idx == 4);
}

void a_draft_right_after_a_wrong_one_is_not_kept() {
    SlotTable table(limits());
    run_decode(speculating(table, 3, 0), {7, 1, 2, 3});
    CHECK((kept_tokens(table) == Words{7}));
}

void rows_behind_drafts_draw_as_if_the_drafts_had_been_drawn() {
    SlotTable table(limits());
    feed(speculating(table, 3, 0.5f), {2, 0, 0, 0, 0, 0, 1, 0});
    const auto in_output = [&](int32_t sample, int32_t token) {
        const SamplingState& state = *table.samples()[sample].state;
        for (int32_t i = 0; i < state.num_counted; ++i)
            if (state.counted_ids[i] == token) return state.counted_output[i];
        return -1;
    };
    for (int32_t i = 0; i < 4; ++i) {
        CHECK(in_output(i, 3) == 1 && in_output(i, 4) == (i >= 1) && in_output(i, 1) == (i >= 2));
        CHECK(in_output(i, 2) == (i >= 3));
    }
    for (int32_t i = 0; i < 4; ++i) table.sampled()[i] = {.token = 50 + i};
    table.commit();
    feed(table, {3, 0, 0, 0, 0, 0, -1});
    CHECK(in_output(0, 4) == 0 && in_output(0, 50) == 1 && in_output(0, 51) == -1);
}

void drafts_end_with_the_output() {
    SlotTable table(limits());
    run_decode(speculating(table, 3, 0, 3), {4, 1});  // three tokens in all, one is out
    CHECK((kept_tokens(table) == Words{4, 1}));
    feed(table, {3, 0, 0, 0, 0, 0, -1});
    CHECK(table.num_tokens() == 0 && table.num_samples() == 0);
    table.commit();
    CHECK(kept_tokens(table).empty());
}

void a_slot_without_budget_makes_no_drafts() {
    SlotTable table(limits());
    feed(speculating(table, 3, 0), {2, 0, 0, 0, 1, 0, 1, 0, 3, 0, 3, 3, 0});  // none after matches of 3
    CHECK(table.num_tokens() == 1);
}

void broken_messages_are_refused() {
    const auto refused = [](const Words& words) {
        SlotTable table(limits());
        CHECK_THROWS(feed(table, words), std::invalid_argument);
    };
    refused({});
    refused({1, 0, 0, 0, 0, 0});
    refused({1, 0, 0, 0, 0, 0, 1, 0});                                    // not open
    refused({1, 0, 0, 0, 0, 0, 0, 9});                                    // words left over
    refused(join({{1, 0, 1, 0, 0, 0, 0}, opening(3, 1, 0)}));             // no such slot
    refused(join({{1, 0, 1, 1, 0, 0, 0}, opening(0, 1, 0), {0, 0, 8}}));  // no such block
    refused(join(
        {{1, 0, 1, 3, 0, 0, 0}, opening(0, 1, 0), {0, 0, 1, 0, 0, 2, 0, 0, 3}}));  // more than max_blocks
    refused(join({{1, 0, 1, 0, 0, 1, 0}, opening(0, 1, 0), {0, 1, 1, 0, 10}}));    // no block granted
    refused(join({{1, 0, 1, 1, 0, 1, 0}, opening(0, 1, 0), {0, 0, 1}, {0, 1, 1, 0, 100}}));  // no such token
    refused(join({{1, 0, 1, 1, 0, 0, 1}, opening(0, 1, 0), {0, 0, 1}, {0}}));  // decodes before a draw
    refused({1, INT32_MAX, 0, 0, 0, 0, 0});
    refused({1, 0, 0, INT32_MAX, 0, 0, 0});
    refused({1, 0, 0, 0, INT32_MAX, 0, 0});
    refused(join({{1, 0, 1, 0, 1, 0, 0}, opening(0, 1, 0), {0, 1, 1, 1, 16}}));  // a budget above kMaxDrafts
}

// Whatever the words are, the table answers with rows inside its limits or with a refusal.
void mutated_messages_never_leave_the_limits() {
    std::mt19937 random(5);
    int accepted = 0;
    for (int i = 0; i < 100000; ++i) {
        Words words = kFirstStep;
        for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips)
            words[random() % words.size()] =
                random() % 2 ? static_cast<int32_t>(random() % 12) : static_cast<int32_t>(random());
        SlotTable table(limits());
        try {
            feed(table, words);
            ++accepted;
            CHECK(table.num_tokens() <= 32 && table.num_samples() <= 4);
        } catch (const std::invalid_argument&) {
        }
    }
    CHECK(accepted > 0 && accepted < 100000);
}

}  // namespace

int main() {
    rows_follow_chunks_and_decodes();
    a_recomputed_slot_stands_where_it_stood();
    drafts_are_rows_that_draw();
    drafts_that_were_drawn_are_kept_and_the_rest_is_rolled_back();
    a_draft_right_after_a_wrong_one_is_not_kept();
    rows_behind_drafts_draw_as_if_the_drafts_had_been_drawn();
    drafts_end_with_the_output();
    a_slot_without_budget_makes_no_drafts();
    broken_messages_are_refused();
    mutated_messages_never_leave_the_limits();
    return failures() != 0;
}
