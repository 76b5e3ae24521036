#include "ring/compressed_all_reduce.h"

#include <algorithm>

namespace fastserve {

namespace {

constexpr int64_t kValues = WireBlock::kValues;
constexpr int64_t kBlockBytes = static_cast<int64_t>(sizeof(WireBlock));

}  // namespace

CompressedAllReduce::CompressedAllReduce(Collectives& collectives) : collectives_(collectives) {}

bool CompressedAllReduce::all_reduce(float* data, int64_t count) {
    const int size = collectives_.size(), mine = collectives_.rank();
    if (size == 1 || count == 0) return true;
    const int64_t num_blocks = (count + kValues - 1) / kValues;
    const int64_t longest = (num_blocks + size - 1) / size;
    const int64_t begin = blocks_before(num_blocks, mine), own = blocks_before(num_blocks, mine + 1) - begin;
    wire_.resize(static_cast<size_t>(num_blocks));
    arrived_.resize(static_cast<size_t>(size * longest));
    op_table().compress({data, count, wire_.data()});

    std::vector<const void*> in;
    std::vector<void*> out;
    std::vector<int64_t> in_bytes, out_bytes(static_cast<size_t>(size), own * kBlockBytes);
    for (int rank = 0; rank < size; ++rank) {
        const int64_t first = blocks_before(num_blocks, rank);
        in.push_back(wire_.data() + first);
        in_bytes.push_back((blocks_before(num_blocks, rank + 1) - first) * kBlockBytes);
        out.push_back(arrived_.data() + rank * longest);
    }
    if (!collectives_.all_to_all_up_to(longest * kBlockBytes, in.data(), in_bytes.data(), out.data(),
                                       out_bytes.data()))
        return false;

    const int64_t num_values = std::min(count - begin * kValues, own * kValues);
    if (num_values > 0) {
        float* part = data + begin * kValues;
        expanded_.resize(static_cast<size_t>(size * num_values));
        std::vector<const void*> parts;
        for (int i = 1; i <= size; ++i) {
            const int rank = (mine + i) % size;
            float* values = expanded_.data() + rank * num_values;
            if (rank != mine) op_table().expand({arrived_.data() + rank * longest, num_values, values});
            parts.push_back(rank == mine ? part : values);
        }
        void* const out = part;
        op_table().reduce({parts.data(), size, num_values, DataType::f32, ReduceOp::sum, false, &out, 1});
        op_table().compress({part, num_values, arrived_.data() + mine * longest});
    }
    // Chunks differ by a block at most, which is sent along.
    if (!collectives_.all_gather(arrived_.data() + mine * longest, out.data(), longest * kBlockBytes))
        return false;
    for (int rank = 0; rank < size; ++rank) {
        const int64_t first = blocks_before(num_blocks, rank) * kValues;
        const int64_t end = std::min(blocks_before(num_blocks, rank + 1) * kValues, count);
        if (end > first) op_table().expand({arrived_.data() + rank * longest, end - first, data + first});
    }
    return true;
}

}  // namespace fastserve
