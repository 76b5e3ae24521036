// Copies KV blocks between tiers: device memory on one side, pinned memory of the host, which the device
// sees, on the other.
//
// One launch moves any number of scattered blocks, where a copy engine takes a call for each; it needs few
// threads to fill a PCIe link, so a small grid leaves the multiprocessors to the step that runs beside it.
#pragma once

#include "ptx.cuh"

namespace fastserve::cuda {

struct SwapArgs {
    const unsigned char* from;
    unsigned char* to;
    const int32_t* from_blocks;
    const int32_t* to_blocks;
    int num_blocks;
    long long block_bytes;
};

constexpr int kSwapThreads = 256;
constexpr int kSwapBlocks =
    16;  // 4096 threads with four loads of 16 bytes each: 256 KB on their way, PCIe 5 wants 64 KB
constexpr int kVectorsInFlight = 4;  // of one thread

// Pieces of kSwapThreads x kVectorsInFlight vectors, over all blocks in turn.
__global__ void __launch_bounds__(kSwapThreads, 1) swap_blocks(const SwapArgs args) {
    constexpr int kPiece = kSwapThreads * kVectorsInFlight;
    const long long vectors = args.block_bytes / 16, pieces = (vectors + kPiece - 1) / kPiece;
    for (long long piece = blockIdx.x; piece < pieces * args.num_blocks; piece += gridDim.x) {
        const int i = static_cast<int>(piece / pieces);
        const unsigned char* from = args.from + args.from_blocks[i] * args.block_bytes;
        unsigned char* to = args.to + args.to_blocks[i] * args.block_bytes;
        const long long first = piece % pieces * kPiece + threadIdx.x;
        uint4 bits[kVectorsInFlight];
#pragma unroll
        for (int v = 0; v < kVectorsInFlight; ++v)
            if (first + v * kSwapThreads < vectors)
                bits[v] = ld_global_16(from + (first + v * kSwapThreads) * 16);
#pragma unroll
        for (int v = 0; v < kVectorsInFlight; ++v)
            if (first + v * kSwapThreads < vectors)
                st_global_16(to + (first + v * kSwapThreads) * 16, bits[v]);
    }
}

}  // namespace fastserve::cuda
