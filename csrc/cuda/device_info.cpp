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

std::string bus_id() {
    int device;
    check(cudaGetDevice(&device));
    char id[32];
    check(cudaDeviceGetPCIBusId(id, sizeof(id), device));
    return id;
}

bool can_reach(const std::string& bus_id) {
    int own, other, reaches;
    check(cudaGetDevice(&own));
    if (cudaDeviceGetByPCIBusId(&other, bus_id.c_str()) != cudaSuccess) return false;
    if (other == own) return true;
    check(cudaDeviceCanAccessPeer(&reaches, own, other));
    return reaches != 0;
}

}  // namespace fastserve::cuda
