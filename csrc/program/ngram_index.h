// Where the latest tokens of a text stood before, and what followed there: drafts without a second model.
//
// Every run of kMinGram to kMaxGram tokens is filed under the position of the token behind it, the most
// recent one alone. An entry is that position and nothing else: the tokens before it tell whether it is the
// run that was looked for or another one of the same hash, so an overwritten entry costs a draft and never a
// wrong answer. A token costs kMaxGram - kMinGram + 1 writes, a look-up as many reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastserve {

class NgramIndex {
  public:
    static constexpr int32_t kMinGram = 2, kMaxGram = 4;
    // Beyond that many tokens a match says no more: those that follow it are right nine times out of ten.
    static constexpr int32_t kMaxMatch = 8;

    struct Match {
        int32_t length = 0;  // latest tokens that stood there too, up to kMaxMatch; 0: nowhere
        int32_t next = 0;    // position of what followed
    };

    void clear();
    void add(int32_t token);
    Match find() const;
    // What followed a match, as far as [count]. A text that repeats itself is followed by its own draft.
    void draft(const Match& match, int32_t count, int32_t* tokens) const;

    size_t num_tokens() const { return tokens_.size(); }

  private:
    // 1 MiB: texts of some 60,000 tokens; longer ones forget what is oldest, a little at a time.
    static constexpr int32_t kMinBits = 8, kMaxBits = 18;

    size_t entry_of(const int32_t* gram, int32_t length) const;
    void file(size_t position);
    void grow();

    std::vector<int32_t> tokens_;
    std::vector<int32_t> positions_;  // [1 << bits_]; 0: none
    int32_t bits_ = 0;
};

}  // namespace fastserve
