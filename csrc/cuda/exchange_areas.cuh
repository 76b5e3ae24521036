// Where each op's area lies in an exchange buffer, and how large it is.
#pragma once

#include "all_reduce.cuh"
#include "arguments.h"
#include "matmul_all_reduce_ring.cuh"

namespace fastserve::cuda {

// Slots of one call: sums of up to 8 MB in two shots (a decode step of 512 rows of 8192 in bf16), longer ones
// go by the ring.
constexpr long long kAllReduceHalfBytes = 16 << 20;
// 2048 rows of 4096 columns in two shots; more rows go in turns.
constexpr long long kMatmulHalfBytes = 32 << 20;
constexpr int kRingBlocks = 64;     // of an all_reduce: enough to fill NVLink's 450 GB/s at 7-10 GB/s a block
constexpr int kMatmulBlocks = 160;  // no device has more multiprocessors (B200: 148)

static_assert(kMaxRanks == kMaxExchangeRanks);

enum class Area { kAllReduce, kRing, kMatmulRing, kMatmulShots, kTriton, kEnd };

enum class Strategy { kOneShot, kTwoShot, kRing };

inline long long area_offset(Area area, int size) {
    const long long bytes[] = {kAllReduceFlagBytes + 2 * kAllReduceHalfBytes,
                               kRingFlagBytes + kRingBlocks * kRingSlots * kSlotBytes,
                               kMatmulRingFlagBytes + kMatmulBlocks * matmul_ring_block_bytes(size),
                               kMatmulShotFlagBytes + 2 * kMatmulHalfBytes, kTritonAreaBytes};
    long long offset = 0;
    for (int i = 0; i < static_cast<int>(area); ++i) offset += bytes[i];
    return offset;
}

inline Peers peers_in(const Exchange& exchange, Area area) {
    require(2 <= exchange.size && exchange.size <= kMaxRanks, "an exchange must have 2 to 8 ranks");
    Peers peers = {};
    peers.rank = exchange.rank;
    peers.size = exchange.size;
    for (int rank = 0; rank < exchange.size; ++rank)
        peers.areas[rank] =
            static_cast<unsigned char*>(exchange.buffers[rank]) + area_offset(area, exchange.size);
    peers.epoch = exchange.epoch;
    peers.current_epoch = exchange.current_epoch;
    return peers;
}

// Whether a sum goes in one shot, whose slots take `bytes` = R S: up to there (R - 1) S bytes take less time
// than a second hop of 2-3 us: S < 2.5 us x 400 GB/s / (R - 1).
inline bool goes_in_one_shot(long long bytes, int size) {
    static_assert(2LL << 20 <= kAllReduceHalfBytes);  // the most that this lets through
    return bytes <= size * (1LL << 20) / (size - 1);
}

}  // namespace fastserve::cuda
