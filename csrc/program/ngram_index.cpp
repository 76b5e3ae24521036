#include "program/ngram_index.h"

#include <algorithm>

namespace fastserve {

namespace {

constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio: spreads neighbouring ids (Knuth 6.4)
constexpr size_t kEntriesPerToken = 4;         // for kMaxGram - kMinGram + 1 = 3 grams

}  // namespace

void NgramIndex::clear() {
    tokens_.clear();
    std::fill(positions_.begin(), positions_.end(), 0);
}

void NgramIndex::add(int32_t token) {
    if (tokens_.size() * kEntriesPerToken >= positions_.size() && bits_ < kMaxBits) grow();
    if (!tokens_.empty()) file(tokens_.size());
    tokens_.push_back(token);
}

size_t NgramIndex::entry_of(const int32_t* gram, int32_t length) const {
    uint64_t hash = static_cast<uint64_t>(length);
    for (int32_t i = 0; i < length; ++i) hash = (hash + static_cast<uint32_t>(gram[i])) * kOdd;
    return hash >> (64 - bits_);
}

// The grams that end before `position`.
void NgramIndex::file(size_t position) {
    for (int32_t length = kMinGram; length <= kMaxGram && static_cast<size_t>(length) <= position; ++length)
        positions_[entry_of(tokens_.data() + position - length, length)] = static_cast<int32_t>(position);
}

void NgramIndex::grow() {
    bits_ = std::max(bits_ + 1, kMinBits);
    positions_.assign(size_t{1} << bits_, 0);
    for (size_t position = kMinGram; position < tokens_.size(); ++position) file(position);
}

NgramIndex::Match NgramIndex::find() const {
    const int32_t size = static_cast<int32_t>(tokens_.size());
    const int32_t* tokens = tokens_.data();
    for (int32_t length = kMaxGram; length >= kMinGram; --length) {
        if (size <= length) continue;
        const int32_t next = positions_[entry_of(tokens + size - length, length)];
        const auto stands = [&](int32_t back) { return tokens[next - back] == tokens[size - back]; };
        int32_t found = 0;
        while (found < kMaxMatch && found < next && stands(found + 1)) ++found;
        if (found >= length) return {found, next};
    }
    return {};
}

void NgramIndex::draft(const Match& match, int32_t count, int32_t* tokens) const {
    const int32_t size = static_cast<int32_t>(tokens_.size());
    for (int32_t i = 0; i < count; ++i) {
        const int32_t at = match.next + i;
        tokens[i] = at < size ? tokens_[at] : tokens[at - size];
    }
}

}  // namespace fastserve
