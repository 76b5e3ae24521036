#include "program/slots.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastserve {

namespace {

constexpr int32_t kMaxStopIds = 1024;
constexpr int32_t kMaxBias = 4096;

[[noreturn]] void refuse(const std::string& rule, int64_t value) {
    throw std::invalid_argument("step: " + rule + ", got " + std::to_string(value));
}

int32_t bits_of(float value) {
    int32_t word;
    std::memcpy(&word, &value, 4);
    return word;
}

}  // namespace

// Reads words one by one and never past the end.
class SlotTable::Reader {
  public:
    Reader(const int32_t* words, size_t num_words) : at_(words), end_(words + num_words) {}
    int32_t word() { return *take(1); }
    float real() {
        float value;
        std::memcpy(&value, take(1), 4);
        return value;
    }
    int32_t in_range(const char* name, int32_t low, int32_t high) {
        const int32_t value = word();
        if (value < low || value >= high)
            refuse(
                std::string(name) + " must be in [" + std::to_string(low) + ", " + std::to_string(high) + ")",
                value);
        return value;
    }
    const int32_t* take(int64_t count) {
        if (end_ - at_ < count) refuse("the message ends too early; words missing", count - (end_ - at_));
        const int32_t* from = at_;
        at_ += count;
        return from;
    }
    bool done() const { return at_ == end_; }

  private:
    const int32_t* at_;
    const int32_t* end_;
};

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
    Reader reader(words, num_words);
    step_id_ = reader.word();
    num_tokens_ = num_samples_ = 0;
    const int32_t num_closed = reader.in_range("num_closed", 0, limits_.num_slots + 1);
    const int32_t num_opened = reader.in_range("num_opened", 0, limits_.num_slots + 1);
    const int32_t num_blocks = reader.in_range("num_blocks", 0, INT32_MAX);
    const int32_t num_chunks = reader.in_range("num_chunks", 0, limits_.num_slots + 1);
    const int32_t num_decodes = reader.in_range("num_decodes", -1, limits_.num_slots + 1);
    for (int32_t i = 0; i < num_closed; ++i) {
        const int32_t idx = reader.word();
        open_slot(idx).open = false;
    }
    for (int32_t i = 0; i < num_opened; ++i) open(reader);
    for (int32_t i = 0; i < num_blocks; ++i) grant(reader);
    granted_ = num_blocks > 0;
    for (int32_t i = 0; i < num_chunks; ++i) chunk(reader);
    if (num_decodes >= 0) {
        const int32_t* idx = reader.take(num_decodes);
        decodes_.assign(idx, idx + num_decodes);
    }
    for (const int32_t idx : decodes_) decode(idx);
    if (!reader.done()) refuse("words are left over in step", step_id_);
}

void SlotTable::open(Reader& reader) {
    const int32_t idx = reader.in_range("slot", 0, limits_.num_slots);
    Slot& slot = slots_[idx];
    if (slot.open) refuse("slot is open already", idx);
    slot.open = true;
    slot.position = 0;
    slot.last_token = -1;
    std::fill(slot.blocks_of_group.begin(), slot.blocks_of_group.end(), 0);
    slot.num_prompt_tokens = reader.in_range("num_prompt_tokens", 1, INT32_MAX);
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
    slot.counted_ids.clear();
    slot.counted_output.clear();
    slot.index_of_counted.clear();
    s.num_counted = 0;
}

void SlotTable::grant(Reader& reader) {
    const int32_t idx = reader.word();
    Slot& slot = open_slot(idx);
    const int32_t group = reader.in_range("group", 0, static_cast<int32_t>(tables_.size()));
    const int32_t block = reader.in_range("block id", 0, limits_.num_blocks[group]);
    int32_t& held = slot.blocks_of_group[group];
    if (held >= limits_.max_blocks) refuse("a slot holds at most max_blocks blocks", held + 1);
    tables_[group][static_cast<size_t>(idx) * limits_.max_blocks + held++] = block;
}

void SlotTable::chunk(Reader& reader) {
    const int32_t idx = reader.word();
    Slot& slot = open_slot(idx);
    const int32_t num_tokens = reader.in_range("tokens of a chunk", 1, limits_.max_tokens - num_tokens_ + 1);
    const int32_t sample = reader.in_range("sample", 0, 2);
    const int32_t num_scores = reader.in_range("num_scores", 0, num_tokens + 1);
    const int32_t* tokens = reader.take(num_tokens);
    const int32_t* targets = reader.take(num_scores);
    for (int32_t i = 0; i < num_tokens; ++i) {
        count(slot, tokens[i], slot.position >= slot.num_prompt_tokens);
        add_row(slot, idx, tokens[i]);
    }
    for (int32_t i = 0; i < num_scores; ++i) {
        if (targets[i] < 0 || targets[i] >= limits_.vocab_size)
            refuse("score target is outside the vocabulary", targets[i]);
        add_sample(slot, idx, num_tokens_ - num_scores + i, 0, targets[i]);
    }
    if (sample) add_sample(slot, idx, num_tokens_ - 1, slot.position - slot.num_prompt_tokens, -1);
}

void SlotTable::decode(int32_t idx) {
    Slot& slot = open_slot(idx);
    if (slot.last_token < 0) refuse("a slot decodes before it drew a token; slot", idx);
    if (num_tokens_ >= limits_.max_tokens) refuse("a step holds at most max_tokens rows", num_tokens_ + 1);
    add_row(slot, idx, slot.last_token);
    add_sample(slot, idx, num_tokens_ - 1, slot.position - slot.num_prompt_tokens, -1);
}

void SlotTable::add_row(Slot& slot, int32_t idx, int32_t token) {
    if (token < 0 || token >= limits_.vocab_size) refuse("token id is outside the vocabulary", token);
    for (const int32_t held : slot.blocks_of_group)
        if (slot.position >= held * kBlockSize) refuse("no block was granted for position", slot.position);
    token_ids_[num_tokens_] = token;
    positions_[num_tokens_] = slot.position++;
    row_slot_[num_tokens_++] = idx;
}

void SlotTable::add_sample(const Slot& slot, int32_t idx, int32_t row, int32_t output_idx, int32_t target) {
    if (num_samples_ >= limits_.max_samples)
        refuse("a step samples at most max_samples rows", num_samples_ + 1);
    sample_rows_[num_samples_] = row;
    sample_slot_[num_samples_] = idx;
    samples_[num_samples_++] = {&slot.sampling, output_idx, target};
}

void SlotTable::count(Slot& slot, int32_t token, bool output) {
    if (!slot.counts_tokens) return;
    const auto [entry, added] =
        slot.index_of_counted.try_emplace(token, static_cast<int32_t>(slot.counted_ids.size()));
    if (added) {
        slot.counted_ids.push_back(token);
        slot.counted_output.push_back(0);
    }
    slot.counted_output[entry->second] += output;
    slot.sampling.counted_ids = slot.counted_ids.data();
    slot.sampling.counted_output = slot.counted_output.data();
    slot.sampling.num_counted = static_cast<int32_t>(slot.counted_ids.size());
}

void SlotTable::commit() {
    for (int32_t i = 0; i < num_samples_; ++i) {
        if (samples_[i].target >= 0) continue;
        Slot& slot = slots_[sample_slot_[i]];
        slot.last_token = sampled_[i].token;
        count(slot, slot.last_token, true);
    }
}

void SlotTable::encode_result(int32_t elapsed_us, std::vector<int32_t>& words) const {
    words.assign({step_id_, elapsed_us, num_samples_});
    for (int32_t i = 0; i < num_samples_; ++i) {
        const SampleOut& out = sampled_[i];
        words.insert(words.end(), {sample_slot_[i], out.token, samples_[i].target >= 0, bits_of(out.logprob),
                                   out.rank, out.num_top});
        words.insert(words.end(), out.top_ids, out.top_ids + out.num_top);
        for (int32_t j = 0; j < out.num_top; ++j) words.push_back(bits_of(out.top_logprobs[j]));
    }
}

}  // namespace fastserve
