#include "benchmark/fill.h"

#include <algorithm>
#include <vector>

#include "ops.h"

namespace fastserve {

void fill_with_ones(float* to, int64_t count) {
    constexpr int64_t kBlock = 2048;
    static const std::vector<float> ones(kBlock, 1.0f);
    for (int64_t i = 0; i < count; i += kBlock) {
        const int64_t bytes = std::min(kBlock, count - i) * static_cast<int64_t>(sizeof(float));
        op_table().copy({.to = to + i, .from = ones.data(), .bytes = bytes, .stream_bytes = INT64_MAX});
    }
}

}  // namespace fastserve
