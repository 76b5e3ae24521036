// Which tokens a sequence holds and how often its output does: what penalties ask for.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "ops.h"

namespace fastserve {

class TokenCounts {
  public:
    void clear();
    // Returns whether the token is new.
    bool add(int32_t token, bool output);
    // Undoes the last add, which returned was_new.
    void take_back(int32_t token, bool was_new);
    // Points `state` at the counts as they are; the next add may move them.
    void show(SamplingState& state) const;

    const std::vector<int32_t>& ids() const { return ids_; }
    const std::vector<int32_t>& in_output() const { return in_output_; }

  private:
    std::vector<int32_t> ids_, in_output_;
    std::unordered_map<int32_t, int32_t> index_of_;
};

}  // namespace fastserve
