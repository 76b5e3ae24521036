// The CUDA runtime's memory, on the host: as strict about what it is given as CUDA is. All devices are in one
// process, so an IPC handle holds an address; the address by which a device sees memory of the host is the
// host's.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>

namespace {

// Pieces of memory, by their beginning.
class Pieces {
  public:
    bool add(void* begin, size_t bytes) {
        const std::lock_guard lock(mutex_);
        for (const auto& [other, size] : pieces_)
            if (begin < other + size && other < static_cast<unsigned char*>(begin) + bytes) return false;
        pieces_[static_cast<unsigned char*>(begin)] = bytes;
        return true;
    }
    // Bytes of the piece that begins there, 0: none does.
    size_t remove(void* begin) {
        const std::lock_guard lock(mutex_);
        const auto found = pieces_.find(static_cast<unsigned char*>(begin));
        if (found == pieces_.end()) return 0;
        const size_t bytes = found->second;
        pieces_.erase(found);
        return bytes;
    }
    // As remove, but it stays.
    size_t size_of(void* begin) {
        const std::lock_guard lock(mutex_);
        const auto found = pieces_.find(static_cast<unsigned char*>(begin));
        return found == pieces_.end() ? 0 : found->second;
    }

  private:
    std::mutex mutex_;
    std::map<unsigned char*, size_t> pieces_;
};

Pieces of_devices, of_host, registered;

// Only what is used of it takes memory.
cudaError_t allocate(Pieces& pieces, void** memory, size_t bytes) {
    *memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*memory == MAP_FAILED) return cudaErrorMemoryAllocation;
    pieces.add(*memory, bytes);
    return cudaSuccess;
}

cudaError_t release(Pieces& pieces, void* memory) {
    if (memory == nullptr) return cudaSuccess;
    const size_t bytes = pieces.remove(memory);
    if (bytes == 0) return cudaErrorInvalidValue;
    munmap(memory, bytes);
    return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** memory, size_t bytes) {
    return allocate(of_devices, memory, bytes);
}

cudaError_t cudaFree(void* memory) {
    return release(of_devices, memory);
}

// Zeros for a whole piece are fresh pages: of what is never used, sanitizers keep no shadow.
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
    if (value != 0 || of_devices.size_of(memory) != bytes)
        std::memset(memory, value, bytes);
    else if (madvise(memory, bytes, MADV_DONTNEED) != 0)
        return cudaErrorInvalidValue;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
    return allocate(of_host, memory, bytes);
}

cudaError_t cudaFreeHost(void* memory) {
    return release(of_host, memory);
}

cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned) {
    return registered.add(memory, bytes) ? cudaSuccess : cudaErrorHostMemoryAlreadyRegistered;
}

cudaError_t cudaHostUnregister(void* memory) {
    return registered.remove(memory) > 0 ? cudaSuccess : cudaErrorHostMemoryNotRegistered;
}

cudaError_t cudaHostGetDevicePointer(void** seen, void* memory, unsigned) {
    if (of_host.size_of(memory) == 0 && registered.size_of(memory) == 0) return cudaErrorInvalidValue;
    *seen = memory;
    return cudaSuccess;
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory) {
    if (of_devices.size_of(memory) == 0) return cudaErrorInvalidValue;
    std::memcpy(handle, &memory, sizeof(memory));
    return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned) {
    std::memcpy(memory, &handle, sizeof(*memory));
    return of_devices.size_of(*memory) > 0 ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t cudaIpcCloseMemHandle(void*) {
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

}  // extern "C"
