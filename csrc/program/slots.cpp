#include "program/slots.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "program/step_reader.h"

namespace fastserve {

namespace {

constexpr int32_t kMaxStopIds = 1024;
constexpr int32_t kMaxBias = 4096;

int32_t bits_of(float value) {
    int32_t word;
    std::memcpy(&word, &value, 4);
    return word;
}

int32_t match_class_of(int32_t length) {
    return length >= NgramIndex::kMaxMatch ? 3 : std::min(length, 4) - NgramIndex::kMinGram;
}

}  // namespace

SlotTable::SlotTable(SlotLimits limits) : limits_(std::move(limits)) {
    const auto positive = [](const char* name, int64_t value) {
        if (value < 1)
            throw std::invalid_argument(std::string(name) + " must be >= 1, got " + std::to_string(value));
    };
    positive("max_tokens", limits_.max_tokens);
    positive("max_samples", limits_.max_samples);
    positive("num_slots", limits_.num_slots);
    positive("max_blocks", limits_.max_blocks);
    positive("vocab_size", limits_.vocab_size);
    positive("layer groups", static_cast<int64_t>(limits_.num_blocks.size()));
    slots_.resize(limits_.num_slots);
    for (Slot& slot : slots_) slot.blocks_of_group.assign(limits_.num_blocks.size(), 0);
    for (auto* rows : {&token_ids_, &positions_, &row_slot_}) rows->assign(limits_.max_tokens, 0);
    for (auto* rows : {&sample_rows_, &sample_slot_}) rows->assign(limits_.max_samples, 0);
    samples_.resize(limits_.max_samples);
    sampled_.resize(limits_.max_samples);
    draft_states_.resize(limits_.max_samples);
    for (auto* flags : {&is_draft_, &kept_}) flags->assign(limits_.max_samples, 0);
    drafted_.reserve(limits_.num_slots);
    const size_t table = static_cast<size_t>(limits_.num_slots) * limits_.max_blocks;
    tables_.assign(limits_.num_blocks.size(), std::vector<int32_t>(table, 0));
}

KvIndex SlotTable::kv_index(int32_t group) const {
    return {row_slot_.data(), positions_.data(), tables_.at(group).data(), limits_.max_blocks};
}

SlotTable::Slot& SlotTable::open_slot(int32_t idx) {
    if (idx < 0 || idx >= limits_.num_slots || !slots_[idx].open) refuse("slot is not open", idx);
    return slots_[idx];
}

void SlotTable::apply(const int32_t* words, size_t num_words) {
    StepReader reader(words, num_words);
    step_id_ = reader.word();
    num_tokens_ = num_samples_ = 0;
    drafted_.clear();
    const int32_t num_closed = reader.in_range("num_closed", 0, limits_.num_slots + 1);
    const int32_t num_opened = reader.in_range("num_opened", 0, limits_.num_slots + 1);
    const int32_t num_blocks = reader.in_range("num_blocks", 0, INT32_MAX);
    const int32_t num_budgets = reader.in_range("num_budgets", 0, limits_.num_slots + 1);
    const int32_t num_chunks = reader.in_range("num_chunks", 0, limits_.num_slots + 1);
    const int32_t num_decodes = reader.in_range("num_decodes", -1, limits_.num_slots + 1);
    for (int32_t i = 0; i < num_closed; ++i) {
        const int32_t idx = reader.word();
        open_slot(idx).open = false;
    }
    for (int32_t i = 0; i < num_opened; ++i) open(reader);
    for (int32_t i = 0; i < num_blocks; ++i) grant(reader);
    granted_ = num_blocks > 0;
    for (int32_t i = 0; i < num_budgets; ++i) set_budgets(reader);
    for (int32_t i = 0; i < num_chunks; ++i) chunk(reader);
    if (num_decodes >= 0) {
        const int32_t* idx = reader.take(num_decodes);
        decodes_.assign(idx, idx + num_decodes);
    }
    for (const int32_t idx : decodes_) decode(idx);
    if (!reader.done()) refuse("words are left over in step", step_id_);
}

void SlotTable::open(StepReader& reader) {
    const int32_t idx = reader.in_range("slot", 0, limits_.num_slots);
    Slot& slot = slots_[idx];
    if (slot.open) refuse("slot is open already", idx);
    slot.open = true;
    slot.position = 0;
    slot.last_token = -1;
    std::fill(slot.blocks_of_group.begin(), slot.blocks_of_group.end(), 0);
    slot.num_prompt_tokens = reader.in_range("num_prompt_tokens", 1, INT32_MAX);
    slot.max_tokens = reader.in_range("max_tokens", 1, INT32_MAX);
    slot.speculates = reader.in_range("speculates", 0, 2) != 0;
    slot.budgets.fill(0);
    slot.text.clear();
    SamplingState& s = slot.sampling;
    s.temperature = reader.real();
    s.top_k = reader.in_range("top_k", 0, INT32_MAX);
    s.top_p = reader.real();
    s.min_p = reader.real();
    s.repetition_penalty = reader.real();
    s.presence_penalty = reader.real();
    s.frequency_penalty = reader.real();
    const auto low = static_cast<uint32_t>(reader.word());
    s.seed = static_cast<uint64_t>(static_cast<uint32_t>(reader.word())) << 32 | low;
    s.min_tokens = reader.in_range("min_tokens", 0, INT32_MAX);
    s.num_logprobs = reader.in_range("num_logprobs", -1, kMaxTopLogprobs + 1);
    const int32_t num_stop = reader.in_range("num_stop_ids", 0, kMaxStopIds + 1);
    const int32_t num_bias = reader.in_range("num_bias", 0, kMaxBias + 1);
    const int32_t* stop = reader.take(num_stop);
    slot.stop_ids.assign(stop, stop + num_stop);
    const int32_t* bias = reader.take(num_bias);
    slot.bias_ids.assign(bias, bias + num_bias);
    slot.bias_values.resize(num_bias);
    const int32_t* values = reader.take(num_bias);
    if (num_bias) std::memcpy(slot.bias_values.data(), values, 4 * static_cast<size_t>(num_bias));
    for (const auto* ids : {&slot.stop_ids, &slot.bias_ids})
        for (const int32_t id : *ids)
            if (id < 0 || id >= limits_.vocab_size) refuse("token id is outside the vocabulary", id);
    s.stop_ids = slot.stop_ids.data();
    s.num_stop_ids = num_stop;
    s.bias_ids = slot.bias_ids.data();
    s.bias_values = slot.bias_values.data();
    s.num_bias = num_bias;
    slot.counts_tokens =
        s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f;
    slot.counts.clear();
    slot.counts.show(s);
}

void SlotTable::grant(StepReader& reader) {
    const int32_t idx = reader.word();
    Slot& slot = open_slot(idx);
    const int32_t group = reader.in_range("group", 0, static_cast<int32_t>(tables_.size()));
    const int32_t block = reader.in_range("block id", 0, limits_.num_blocks[group]);
    int32_t& held = slot.blocks_of_group[group];
    if (held >= limits_.max_blocks) refuse("a slot holds at most max_blocks blocks", held + 1);
    tables_[group][static_cast<size_t>(idx) * limits_.max_blocks + held++] = block;
}

void SlotTable::set_budgets(StepReader& reader) {
    Slot& slot = open_slot(reader.word());
    for (int32_t& budget : slot.budgets) budget = reader.in_range("draft budget", 0, kMaxDrafts + 1);
}

void SlotTable::chunk(StepReader& reader) {
    const int32_t idx = reader.word();
    Slot& slot = open_slot(idx);
    const int32_t num_tokens = reader.in_range("tokens of a chunk", 1, limits_.max_tokens - num_tokens_ + 1);
    const int32_t sample = reader.in_range("sample", 0, 2);
    const int32_t num_scores = reader.in_range("num_scores", 0, num_tokens + 1);
    const int32_t* tokens = reader.take(num_tokens);
    const int32_t* targets = reader.take(num_scores);
    for (int32_t i = 0; i < num_tokens; ++i) {
        take_in(slot, tokens[i], slot.position >= slot.num_prompt_tokens);
        add_row(slot, idx, tokens[i]);
    }
    for (int32_t i = 0; i < num_scores; ++i) {
        if (targets[i] < 0 || targets[i] >= limits_.vocab_size)
            refuse("score target is outside the vocabulary", targets[i]);
        add_sample(slot.sampling, idx, num_tokens_ - num_scores + i, 0, targets[i]);
    }
    if (sample) add_sample(slot.sampling, idx, num_tokens_ - 1, slot.position - slot.num_prompt_tokens, -1);
}

void SlotTable::decode(int32_t idx) {
    Slot& slot = open_slot(idx);
    if (slot.last_token < 0) refuse("a slot decodes before it drew a token; slot", idx);
    // Drafts that were kept took it to its end sooner than whoever sent this step could know.
    if (slot.position + 1 - slot.num_prompt_tokens >= slot.max_tokens) return;
    add_row(slot, idx, slot.last_token);
    add_sample(slot.sampling, idx, num_tokens_ - 1, slot.position - slot.num_prompt_tokens, -1);
    if (slot.speculates) add_drafts(slot, idx);
}

void SlotTable::add_drafts(Slot& slot, int32_t idx) {
    if (std::all_of(slot.budgets.begin(), slot.budgets.end(), [](int32_t budget) { return budget == 0; }))
        return;
    const NgramIndex::Match match = slot.text.find();
    if (match.length == 0) return;
    const int32_t match_class = match_class_of(match.length);
    const int32_t draws_left = slot.max_tokens - (slot.position - slot.num_prompt_tokens) - 1;
    const int32_t num_drafts = std::min(slot.budgets[match_class], draws_left);
    if (num_drafts <= 0) return;
    std::array<int32_t, kMaxDrafts> drafts;
    std::array<bool, kMaxDrafts> were_new{};
    slot.text.draft(match, num_drafts, drafts.data());
    for (int32_t i = 0; i < num_drafts; ++i) {
        add_row(slot, idx, drafts[i]);
        if (slot.counts_tokens) were_new[i] = slot.counts.add(drafts[i], true);
        add_sample(state_after_drafts(slot), idx, num_tokens_ - 1, slot.position - slot.num_prompt_tokens,
                   -1);
        is_draft_[num_samples_ - 1] = 1;
    }
    if (slot.counts_tokens) {
        for (int32_t i = num_drafts - 1; i >= 0; --i) slot.counts.take_back(drafts[i], were_new[i]);
        slot.counts.show(slot.sampling);
    }
    drafted_.push_back({idx, match_class, num_drafts});
}

// For the next sample: a copy, as the counts go on to change.
const SamplingState& SlotTable::state_after_drafts(const Slot& slot) {
    if (!slot.counts_tokens) return slot.sampling;
    if (num_samples_ >= limits_.max_samples) return slot.sampling;  // which will be refused
    DraftState& state = draft_states_[num_samples_];
    state.sampling = slot.sampling;
    state.counted_ids = slot.counts.ids();
    state.counted_output = slot.counts.in_output();
    state.sampling.counted_ids = state.counted_ids.data();
    state.sampling.counted_output = state.counted_output.data();
    state.sampling.num_counted = static_cast<int32_t>(state.counted_ids.size());
    return state.sampling;
}

void SlotTable::add_row(Slot& slot, int32_t idx, int32_t token) {
    if (num_tokens_ >= limits_.max_tokens) refuse("a step holds at most max_tokens rows", num_tokens_ + 1);
    if (token < 0 || token >= limits_.vocab_size) refuse("token id is outside the vocabulary", token);
    for (const int32_t held : slot.blocks_of_group)
        if (slot.position >= held * kBlockSize) refuse("no block was granted for position", slot.position);
    token_ids_[num_tokens_] = token;
    positions_[num_tokens_] = slot.position++;
    row_slot_[num_tokens_++] = idx;
}

void SlotTable::add_sample(const SamplingState& state, int32_t idx, int32_t row, int32_t output_idx,
                           int32_t target) {
    if (num_samples_ >= limits_.max_samples)
        refuse("a step samples at most max_samples rows", num_samples_ + 1);
    sample_rows_[num_samples_] = row;
    sample_slot_[num_samples_] = idx;
    is_draft_[num_samples_] = 0;
    samples_[num_samples_++] = {&state, output_idx, target};
}

// A token of the text, for good.
void SlotTable::take_in(Slot& slot, int32_t token, bool output) {
    if (slot.speculates) slot.text.add(token);
    if (!slot.counts_tokens) return;
    slot.counts.add(token, output);
    slot.counts.show(slot.sampling);
}

bool SlotTable::is_kept(int32_t sample) const {
    if (!is_draft_[sample]) return true;
    return kept_[sample - 1] && sampled_[sample - 1].token == token_ids_[sample_rows_[sample]];
}

void SlotTable::commit() {
    for (int32_t i = 0; i < num_samples_; ++i) {
        kept_[i] = is_kept(i);
        if (samples_[i].target >= 0) continue;
        Slot& slot = slots_[sample_slot_[i]];
        if (!kept_[i]) {
            --slot.position;
            continue;
        }
        slot.last_token = sampled_[i].token;
        take_in(slot, slot.last_token, true);
    }
}

void SlotTable::encode_result(int32_t elapsed_us, std::vector<int32_t>& words) const {
    const auto num_kept = static_cast<int32_t>(std::count(kept_.begin(), kept_.begin() + num_samples_, 1));
    words.assign({step_id_, elapsed_us, static_cast<int32_t>(drafted_.size()), num_kept});
    for (const Drafted& drafted : drafted_)
        words.insert(words.end(), {drafted.slot, drafted.match_class, drafted.num_drafts});
    for (int32_t i = 0; i < num_samples_; ++i) {
        if (!kept_[i]) continue;
        const SampleOut& out = sampled_[i];
        words.insert(words.end(), {sample_slot_[i], out.token, samples_[i].target >= 0, bits_of(out.logprob),
                                   out.rank, out.num_top});
        words.insert(words.end(), out.top_ids, out.top_ids + out.num_top);
        for (int32_t j = 0; j < out.num_top; ++j) words.push_back(bits_of(out.top_logprobs[j]));
    }
}

}  // namespace fastserve
