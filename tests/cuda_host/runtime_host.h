// What launchers ask of the CUDA runtime, from the emulator: a device of four multiprocessors, one block on
// each at a time. Memory: runtime_host.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "emulator.h"

namespace fastserve::cuda {

inline void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error("CUDA: " + std::to_string(error));
}

inline int num_multiprocessors() {
    return 4;
}

// `stream` holds the seed of the order of fibers.
template <auto kKernel, typename Args>
void launch(int blocks, int threads, size_t shared_bytes, const Args& args, Stream stream) {
    const uint64_t seed = reinterpret_cast<uintptr_t>(stream);
    cuda_host::launch({blocks, threads, shared_bytes, num_multiprocessors(), seed, __PRETTY_FUNCTION__},
                      [&] { kKernel(args); });
}

}  // namespace fastserve::cuda
