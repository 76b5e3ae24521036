// Per-sequence state of a rank: what a step's changes are applied to, and the rows that come out of it.
//
// A step message is a sequence of 32-bit words (fastserve/worker/step_codec.py writes them):
//   step_id, num_closed, num_opened, num_blocks, num_budgets, num_chunks, num_decodes (-1: the same slots as
//   in the last step) closed:  slot opened:  slot, num_prompt_tokens, max_tokens, speculates, temperature,
//   top_k, top_p, min_p, repetition,
//            presence, frequency penalty, seed low, seed high, min_tokens, num_logprobs, num_stop_ids,
//            num_bias, stop ids, bias ids, bias values
//   blocks:  slot, group, block id
//   budgets: slot, drafts after a match of each class [kMatchClasses]
//   chunks:  slot, num_tokens, sample, num_scores, token ids, score targets
//   decodes: slot
// Everything is checked here: ids, counts and lengths. What breaks a rule throws std::invalid_argument.
//
// A slot that speculates decodes its last token and, in the same step, tokens that may follow it: drafts,
// which its own text suggests (ngram_index.h), no more than its budget says. Every one of these rows draws. A
// draft is kept if it is what the row before it drew, so what is kept was drawn from the very tokens that a
// step each would have fed; from the first draft that is not, rows leave nothing behind but keys and values
// of positions that the next step writes again. The ranks of a group draft and draw alike, so nobody tells
// anybody.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "ops.h"
#include "program/ngram_index.h"
#include "program/token_counts.h"

namespace fastserve {

struct SlotLimits {
    int32_t max_tokens;   // rows of a step
    int32_t max_samples;  // sampled rows of a step
    int32_t num_slots;
    int32_t max_blocks;  // of one slot in one group
    int32_t vocab_size;
    std::vector<int32_t> num_blocks;  // per layer group
};

class StepReader;

// Matches of 2, 3, 4 to kMaxMatch - 1, and kMaxMatch tokens: how far a draft is right depends on nothing
// more.
constexpr int32_t kMatchClasses = 4;
constexpr int32_t kMaxDrafts = 15;

class SlotTable {
  public:
    explicit SlotTable(SlotLimits limits);
    SlotTable(const SlotTable&) = delete;
    SlotTable& operator=(const SlotTable&) = delete;

    const SlotLimits& limits() const { return limits_; }

    // Applies one step's changes and lays out its rows. The addresses below never change.
    void apply(const int32_t* words, size_t num_words);
    // Takes the sampled tokens in; to be called once after the rows ran.
    void commit();
    // The step's outcome as words: step_id, elapsed_us, num_drafted, num_samples; per slot that drafted:
    // slot, class of the match, drafts; per sample that is kept: slot, token, scored, logprob, rank, num_top,
    // top ids, top logprobs.
    void encode_result(int32_t elapsed_us, std::vector<int32_t>& words) const;

    int32_t step_id() const { return step_id_; }
    int32_t num_tokens() const { return num_tokens_; }
    int32_t num_samples() const { return num_samples_; }
    bool granted() const { return granted_; }  // whether the step gave a slot a block: tables have changed
    const int32_t* token_ids() const { return token_ids_.data(); }
    const int32_t* sample_rows() const { return sample_rows_.data(); }
    KvIndex kv_index(int32_t group) const;
    const SampleRow* samples() const { return samples_.data(); }
    SampleOut* sampled() { return sampled_.data(); }

  private:
    struct Slot {
        bool open = false;
        bool speculates = false;
        int32_t num_prompt_tokens = 0;
        int32_t max_tokens = 0;  // of the output: a decode beyond them runs nothing
        int32_t position = 0;    // of the next token
        int32_t last_token = -1;
        std::vector<int32_t> blocks_of_group;  // how many each group holds
        SamplingState sampling{};
        std::vector<int32_t> stop_ids, bias_ids;
        std::vector<float> bias_values;
        TokenCounts counts;
        bool counts_tokens = false;
        NgramIndex text;  // prompt and output, where it speculates
        std::array<int32_t, kMatchClasses> budgets{};
    };
    // What a row draws with that comes after a draft, if it is kept: counts that hold the draft.
    struct DraftState {
        SamplingState sampling{};
        std::vector<int32_t> counted_ids, counted_output;
    };
    struct Drafted {
        int32_t slot, match_class, num_drafts;
    };

    Slot& open_slot(int32_t idx);
    void open(StepReader& reader);
    void grant(StepReader& reader);
    void set_budgets(StepReader& reader);
    void chunk(StepReader& reader);
    void decode(int32_t idx);
    void add_drafts(Slot& slot, int32_t idx);
    void add_row(Slot& slot, int32_t idx, int32_t token);
    void add_sample(const SamplingState& state, int32_t idx, int32_t row, int32_t output_idx, int32_t target);
    const SamplingState& state_after_drafts(const Slot& slot);
    void take_in(Slot& slot, int32_t token, bool output);
    bool is_kept(int32_t sample) const;

    SlotLimits limits_;
    std::vector<Slot> slots_;
    std::vector<int32_t> token_ids_, positions_, row_slot_, sample_rows_, sample_slot_, decodes_;
    std::vector<std::vector<int32_t>> tables_;  // per group [num_slots * max_blocks]
    std::vector<SampleRow> samples_;
    std::vector<SampleOut> sampled_;
    std::vector<uint8_t> is_draft_,
        kept_;  // per sample: whether its row's token is a draft; whether it counts
    std::vector<DraftState> draft_states_;  // per sample
    std::vector<Drafted> drafted_;
    int32_t step_id_ = 0, num_tokens_ = 0, num_samples_ = 0;
    bool granted_ = false;
};

}  // namespace fastserve
