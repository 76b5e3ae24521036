// The sum of fp32 buffers whose parts cross the links in 8 bits (WireBlock): 3.8 times fewer bytes.
//
// Two-shot: every rank sends chunk c, compressed, to rank c, who adds what came and its own exact part, in
// the order of collectives.h, and sends the sum, compressed, to all - and takes that itself, so all ranks end
// with the same bits. Error of an element: at most the sum over the other ranks of max |block| / 254 of their
// parts, and once that of the sum's block.
#pragma once

#include <cstdint>
#include <vector>

#include "ops.h"
#include "ring/collectives.h"

namespace fastserve {

class CompressedAllReduce {
  public:
    explicit CompressedAllReduce(Collectives& collectives);

    // Sums of fp32, of so many that what is saved is more than what compressing costs.
    static bool takes(int64_t count, const Reduction& reduction) {
        return reduction.type == DataType::f32 && reduction.op == ReduceOp::sum && !reduction.average &&
               count >= 4096;
    }
    // data [count], in place. False once the epoch was raised.
    bool all_reduce(float* data, int64_t count);

  private:
    int64_t blocks_before(int64_t num_blocks, int chunk) const {
        return chunk * num_blocks / collectives_.size();
    }

    Collectives& collectives_;
    std::vector<WireBlock> wire_, arrived_;  // kept, so that a steady state allocates nothing
    std::vector<float> expanded_;
};

}  // namespace fastserve
