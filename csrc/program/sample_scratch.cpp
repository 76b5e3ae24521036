// How much scratch a program sets aside for sampling.
#include "cpu/sample_scratch.h"

#include "ring/shared_region.h"

namespace fastserve {

static_assert(kMaxShards >= kMaxRanks);

int64_t sample_scratch_bytes(int32_t num_threads, int32_t vocab_size) {
    return sample_scratch_layout(num_threads, vocab_size).total * static_cast<int64_t>(sizeof(float));
}

}  // namespace fastserve
