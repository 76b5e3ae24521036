// What launchers ask of the CUDA runtime, from the emulator: devices of four multiprocessors and more, one
// block on each at a time. Counts what it is asked. Memory: runtime_host.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "emulator.h"

namespace fastserve::cuda {

inline void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error("CUDA: " + std::to_string(error));
}

struct RuntimeCalls {
    std::atomic<int> num_multiprocessors = 0, allow_shared_bytes = 0;
};
inline RuntimeCalls runtime_calls;

constexpr int kHostDevices = 2;
inline thread_local int host_device = 0;  // which a test may set, as cudaSetDevice would

inline int current_device() {
    return host_device;
}

inline int ask_num_multiprocessors(int device) {
    ++runtime_calls.num_multiprocessors;
    return 4 + device;
}

template <auto kKernel>
inline std::atomic<int> allowed_shared_bytes[kHostDevices] = {};

template <auto kKernel>
void allow_shared_bytes(int bytes) {
    ++runtime_calls.allow_shared_bytes;
    allowed_shared_bytes<kKernel>[host_device] = bytes;
}

// `stream` holds the seed of the order of fibers.
template <auto kKernel, typename Args>
void enqueue(int blocks, int threads, size_t shared_bytes, const Args& args, Stream stream) {
    if (shared_bytes > 48 * 1024 &&
        allowed_shared_bytes<kKernel>[host_device] < static_cast<int>(shared_bytes))
        throw std::runtime_error("a kernel that has not asked for so much shared memory");
    const uint64_t seed = reinterpret_cast<uintptr_t>(stream);
    cuda_host::launch({blocks, threads, shared_bytes, 4, seed, __PRETTY_FUNCTION__}, [&] { kKernel(args); });
}

}  // namespace fastserve::cuda
