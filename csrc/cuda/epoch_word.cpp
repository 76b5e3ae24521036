#include "epoch_word.h"

#include <unistd.h>

#include <atomic>

#include "runtime.cuh"

namespace fastserve::cuda {

EpochWord::EpochWord(uint32_t* word) : word_(word) {
    void* host;
    size_t offset = 0;
    if (word_ == nullptr) {
        check(cudaHostAlloc(reinterpret_cast<void**>(&word_), sizeof(*word_), cudaHostAllocMapped));
        *word_ = 0;
        host = word_;
    } else {
        const size_t page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));  // memory is pinned by pages
        offset = reinterpret_cast<uintptr_t>(word_) % page_bytes;
        host = reinterpret_cast<unsigned char*>(word_) - offset;
        check(cudaHostRegister(host, page_bytes, cudaHostRegisterMapped));
        page_ = host;
    }
    void* seen = nullptr;
    const cudaError_t error = cudaHostGetDevicePointer(&seen, host, 0);
    if (error != cudaSuccess) release();
    check(error);
    on_device_ = reinterpret_cast<const uint32_t*>(static_cast<unsigned char*>(seen) + offset);
}

EpochWord::~EpochWord() {
    release();
}

void EpochWord::release() {
    if (page_ == nullptr)
        cudaFreeHost(word_);
    else
        cudaHostUnregister(page_);
}

void EpochWord::raise() {
    std::atomic_ref(*word_).store(1, std::memory_order_release);
}

}  // namespace fastserve::cuda
