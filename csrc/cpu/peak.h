// The fastest loops of an ISA, for measuring what the machine allows: no kernel can beat them.
#pragma once

#include <cstdint>

namespace fastserve {

// Each computing loop runs `iterations` times and returns the operations it did, a product and its addition
// counted as two. Results flow into *sink, so that nothing is optimised away.
struct PeakLoops {
    int64_t (*f32)(int64_t iterations, float* sink);
    int64_t (*bf16)(int64_t iterations, float* sink);
    int64_t (*int8)(int64_t iterations, float* sink);
    void (*read)(const uint8_t* data, int64_t bytes, float* sink);  // bytes: a multiple of kReadStep
};

constexpr int64_t kReadStep = 512;

}  // namespace fastserve
