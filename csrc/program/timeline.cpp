#include "program/timeline.h"

#include <utility>

namespace fastserve {

void Timeline::begin_pass(size_t num_ops, int num_threads) {
    num_threads_ = static_cast<size_t>(num_threads);
    pass_.spans.assign(num_ops * num_threads_, Span{0, 0});
}

void Timeline::end_pass(int32_t num_tokens, int32_t num_samples, uint32_t num_barriers,
                        std::vector<OpCost> costs) {
    pass_.num_tokens = num_tokens;
    pass_.num_samples = num_samples;
    pass_.num_barriers = num_barriers;
    pass_.costs = std::move(costs);
    const std::lock_guard lock(guard_);
    passes_.push_back(pass_);
}

std::vector<Pass> Timeline::take() {
    const std::lock_guard lock(guard_);
    return std::exchange(passes_, {});
}

}  // namespace fastserve
