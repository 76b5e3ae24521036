// What launchers ask of the CUDA runtime; on the host the emulator answers (tests/cuda_host/runtime_host.h).
#pragma once

#include "launch.h"

#ifdef FASTSERVE_CUDA_HOST
#include "runtime_host.h"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fastserve::cuda {

inline void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // not the next call's
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Of the current device.
inline int num_multiprocessors() {
    int device, count;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
}

template <auto kKernel, typename Args>
void launch(int blocks, int threads, size_t shared_bytes, const Args& args, Stream stream) {
    const void* kernel = reinterpret_cast<const void*>(kKernel);
    if (shared_bytes > 48 * 1024)  // more than that a kernel must ask for
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)));
    void* arguments[] = {const_cast<Args*>(&args)};
    check(cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), arguments, shared_bytes,
                           static_cast<cudaStream_t>(stream)));
}

}  // namespace fastserve::cuda

#endif  // FASTSERVE_CUDA_HOST
