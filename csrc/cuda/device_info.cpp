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

bool can_reach(int32_t from, int32_t to) {
    int reaches;
    check(cudaDeviceCanAccessPeer(&reaches, from, to));
    return reaches != 0;
}

}  // namespace fastserve::cuda
