#include "per_device.h"

#include <atomic>

namespace fastserve::cuda {

int PerDevice::read(int device) {
    return std::atomic_ref(known_[device]).load(std::memory_order_relaxed);
}

void PerDevice::write(int device, int value) {
    std::atomic_ref(known_[device]).store(value, std::memory_order_relaxed);
}

}  // namespace fastserve::cuda
