// What GPUs there are, asked without making a context on any of them. Needs no header of CUDA.
#pragma once

#include <cstdint>
#include <string>

namespace fastserve::cuda {

struct DeviceInfo {
    std::string name;
    int64_t total_bytes;
    int32_t capability;  // 10 * major + minor
};

// How many devices there are. Throws std::runtime_error where there is no driver.
int device_count();

// Throws std::runtime_error for a device that is not there.
DeviceInfo device_info(int32_t device);

// Where the current device sits, the same in every process of the host. Throws std::runtime_error.
std::string bus_id();

// Whether the current device may write the memory of the one that sits there: over NVLink, or PCIe where the
// platform lets it. False for one that this process does not see. Throws std::runtime_error.
bool can_reach(const std::string& bus_id);

}  // namespace fastserve::cuda
