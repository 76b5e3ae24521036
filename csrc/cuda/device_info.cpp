#include "device_info.h"

#include "runtime.cuh"

namespace fastserve::cuda {

int device_count() {
    int count;
    check(cudaGetDeviceCount(&count));
    return count;
}

DeviceInfo device_info(int32_t device) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device));
    return {properties.name, static_cast<int64_t>(properties.totalGlobalMem),
            10 * properties.major + properties.minor};
}

}  // namespace fastserve::cuda
