// Per-sequence state of a rank: what a step's changes are applied to, and the rows that come out of it.
//
// A step message is a sequence of 32-bit words (fastserve/worker/step_codec.py writes them):
//   step_id, num_closed, num_opened, num_blocks, num_chunks, num_decodes (-1: the same slots as in the last
//   step) closed:  slot opened:  slot, num_prompt_tokens, temperature, top_k, top_p, min_p, repetition,
//   presence, frequency penalty,
//            seed low, seed high, min_tokens, num_logprobs, num_stop_ids, num_bias, stop ids, bias ids, bias
//            values
//   blocks:  slot, group, block id
//   chunks:  slot, num_tokens, sample, num_scores, token ids, score targets
//   decodes: slot
// Everything is checked here: ids, counts and lengths. What breaks a rule throws std::invalid_argument.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "ops.h"

namespace fastserve {

struct SlotLimits {
    int32_t max_tokens;   // rows of a step
    int32_t max_samples;  // sampled rows of a step
    int32_t num_slots;
    int32_t max_blocks;  // of one slot in one group
    int32_t vocab_size;
    std::vector<int32_t> num_blocks;  // per layer group
};

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
    // The step's samples as words: step_id, elapsed_us, num_samples; per sample slot, token, scored, logprob,
    // rank, num_top, top ids, top logprobs.
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
        int32_t num_prompt_tokens = 0;
        int32_t position = 0;  // of the next token
        int32_t last_token = -1;
        std::vector<int32_t> blocks_of_group;  // how many each group holds
        SamplingState sampling{};
        std::vector<int32_t> stop_ids, bias_ids, counted_ids, counted_output;
        std::vector<float> bias_values;
        std::unordered_map<int32_t, int32_t> index_of_counted;
        bool counts_tokens = false;
    };
    class Reader;

    Slot& open_slot(int32_t idx);
    void open(Reader& reader);
    void grant(Reader& reader);
    void chunk(Reader& reader);
    void decode(int32_t idx);
    void add_row(Slot& slot, int32_t idx, int32_t token);
    void add_sample(const Slot& slot, int32_t idx, int32_t row, int32_t output_idx, int32_t target);
    void count(Slot& slot, int32_t token, bool output);

    SlotLimits limits_;
    std::vector<Slot> slots_;
    std::vector<int32_t> token_ids_, positions_, row_slot_, sample_rows_, sample_slot_, decodes_;
    std::vector<std::vector<int32_t>> tables_;  // per group [num_slots * max_blocks]
    std::vector<SampleRow> samples_;
    std::vector<SampleOut> sampled_;
    int32_t step_id_ = 0, num_tokens_ = 0, num_samples_ = 0;
    bool granted_ = false;
};

}  // namespace fastserve
