// Launches swap.
#include "swap.cuh"

#include "arguments.h"
#include "runtime.cuh"

namespace fastserve::cuda {

void swap(const SwapCall& call, Stream stream) {
    if (call.num_blocks == 0) return;
    const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
    require(call.block_bytes > 0 && call.block_bytes % 16 == 0, "block_bytes must be a multiple of 16");
    require(aligned(call.from) && aligned(call.to), "from and to must start at multiples of 16 bytes");
    const SwapArgs args = {static_cast<const unsigned char*>(call.from),
                           static_cast<unsigned char*>(call.to),
                           call.from_blocks,
                           call.to_blocks,
                           call.num_blocks,
                           call.block_bytes};
    launch<swap_blocks>(kSwapBlocks, kSwapThreads, 0, args, stream);
}

}  // namespace fastserve::cuda
