// The scratch of the sample op: where its parts lie, for the kernel and for the program that allocates it.
#pragma once

#include <cstdint>

#include "ops.h"

namespace fastserve {

constexpr int32_t kPlainBatch = 64;  // rows whose best scores are exchanged together
constexpr int32_t kWaveRows = 16;    // whole rows that a rank works on between two exchanges
constexpr int32_t kMaxShards = 64;   // ranks of one group
constexpr int32_t kPiecesPerThread =
    4;  // pieces of rows when rows are fewer than threads: evens out the ends

// Offsets in floats.
struct SampleScratchLayout {
    int64_t candidates;  // [kPlainBatch + kPiecesPerThread * num_threads] {score, id}: the best of each piece
    int64_t records;     // [kPlainBatch] {score, id}: the best of this rank's columns
    int64_t shards;      // [kMaxShards] {begin, n}: the columns of each rank
    int64_t outs;        // [kWaveRows] SampleOut
    int64_t padded;      // [V] this rank's columns, padded to the widest shard
    int64_t gathered;    // [kWaveRows, V] whole rows
    int64_t work;        // [num_threads, 3, V] a row after penalties, its weights, token ids
    int64_t total;
};

[[gnu::always_inline]] inline SampleScratchLayout sample_scratch_layout(int32_t num_threads,
                                                                        int32_t vocab_size) {
    SampleScratchLayout layout{};
    layout.records = layout.candidates + 2 * (kPlainBatch + int64_t{kPiecesPerThread} * num_threads);
    layout.shards = layout.records + 2 * kPlainBatch;
    layout.outs = layout.shards + 2 * kMaxShards;
    layout.padded = layout.outs + kWaveRows * static_cast<int64_t>(sizeof(SampleOut) / sizeof(float));
    layout.gathered = layout.padded + vocab_size;
    layout.work = layout.gathered + int64_t{kWaveRows} * vocab_size;
    layout.total = layout.work + 3 * int64_t{num_threads} * vocab_size;
    return layout;
}

}  // namespace fastserve
