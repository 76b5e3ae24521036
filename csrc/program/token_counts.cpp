#include "program/token_counts.h"

namespace fastserve {

void TokenCounts::clear() {
    ids_.clear();
    in_output_.clear();
    index_of_.clear();
}

bool TokenCounts::add(int32_t token, bool output) {
    const auto [entry, is_new] = index_of_.try_emplace(token, static_cast<int32_t>(ids_.size()));
    if (is_new) {
        ids_.push_back(token);
        in_output_.push_back(0);
    }
    in_output_[entry->second] += output;
    return is_new;
}

void TokenCounts::take_back(int32_t token, bool was_new) {
    const auto entry = index_of_.find(token);
    --in_output_[entry->second];
    if (!was_new) return;
    ids_.pop_back();
    in_output_.pop_back();
    index_of_.erase(entry);
}

void TokenCounts::show(SamplingState& state) const {
    state.counted_ids = ids_.data();
    state.counted_output = in_output_.data();
    state.num_counted = static_cast<int32_t>(ids_.size());
}

}  // namespace fastserve
