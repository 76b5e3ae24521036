// How much scratch a caller sets aside for an op, whatever the ISA.
#include "cpu/sample_scratch.h"
#include "ops.h"
#include "ring/shared_region.h"
#include "weights/packed_layout.h"

namespace fastserve {

static_assert(kMaxShards >= kMaxRanks);

int64_t matmul_scratch_bytes(WeightType type, int64_t rows, int64_t k) {
    if (is_quantised(type)) {
        // A QuantisedBlock of cpu/matmul_operand.h each, or a BytePair for two: the larger where there is
        // one.
        constexpr int64_t kBlock = 2 * kQuantBlock + 8, kPair = 2 * kQuantBlock + 20;
        const int64_t blocks = k / kQuantBlock;
        return rows * (blocks == 1 ? kPair : blocks * kBlock);
    }
    if (type == WeightType::bf16) return rows * bf16_operand_stride(k) * 2;
    return 0;
}

int64_t operand_copy_bytes(WeightType type, int64_t copy_rows, int64_t k) {
    constexpr int64_t kLinePair = 128;  // that prefetchers take together
    return (matmul_scratch_bytes(type, copy_rows, k) + kLinePair - 1) / kLinePair * kLinePair;
}

int64_t attention_parts_bytes(int32_t num_heads, int32_t head_dim, int32_t max_blocks) {
    return max_partitions(max_blocks) * num_heads * partition_part_floats(head_dim) *
           static_cast<int64_t>(sizeof(float));
}

int64_t sample_scratch_bytes(int32_t num_threads, int32_t vocab_size) {
    return sample_scratch_layout(num_threads, vocab_size).total * static_cast<int64_t>(sizeof(float));
}

}  // namespace fastserve
