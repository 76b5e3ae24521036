// What launchers ask of the CUDA runtime, once per device where the answer stays; on the host the emulator
// answers (tests/cuda_host/runtime_host.h).
#pragma once

#include "launch.h"
#include "per_device.h"

#ifdef FASTSERVE_CUDA_HOST
#include "runtime_host.h"
#else

#include <cuda_runtime.h>

#include "errors.h"

namespace fastserve::cuda {

inline void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // not the next call's
    throw_cuda_error(cudaGetErrorString(error));
}

inline int current_device() {
    int device;
    check(cudaGetDevice(&device));
    return device;
}

inline int ask_num_multiprocessors(int device) {
    int count;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
}

// On the current device.
template <auto kKernel>
void allow_shared_bytes(int bytes) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

template <auto kKernel, typename Args>
void enqueue(int blocks, int threads, size_t shared_bytes, const Args& args, Stream stream) {
    void* arguments[] = {const_cast<Args*>(&args)};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kKernel), dim3(blocks), dim3(threads), arguments,
                           shared_bytes, static_cast<cudaStream_t>(stream)));
}

}  // namespace fastserve::cuda

#endif  // FASTSERVE_CUDA_HOST

namespace fastserve::cuda {

// Of the current device.
inline int num_multiprocessors() {
    static PerDevice known;
    const int device = current_device();
    return known.get(device, [&] { return ask_num_multiprocessors(device); });
}

// A kernel is always launched with as much shared memory.
template <auto kKernel, typename Args>
void launch(int blocks, int threads, size_t shared_bytes, const Args& args, Stream stream) {
    constexpr size_t kUnasked = 48 * 1024;  // more than that a kernel must ask for
    if (shared_bytes > kUnasked) {
        static PerDevice allowed;
        allowed.get(current_device(), [&] {
            allow_shared_bytes<kKernel>(static_cast<int>(shared_bytes));
            return static_cast<int>(shared_bytes);
        });
    }
    enqueue<kKernel>(blocks, threads, shared_bytes, args, stream);
}

}  // namespace fastserve::cuda
