#include "exchange_buffer.h"

#include <atomic>
#include <cstring>

#include "arguments.h"
#include "runtime.cuh"

namespace fastserve::cuda {

ExchangeBuffer::ExchangeBuffer(int rank, int size) {
    require(2 <= size && size <= kMaxExchangeRanks, "size must be in [2, 8]");
    require(0 <= rank && rank < size, "rank must be in [0, size)");
    exchange_.rank = rank;
    exchange_.size = size;
    try {
        check(cudaMalloc(&exchange_.buffers[rank], exchange_bytes(size)));
        check(cudaMemset(exchange_.buffers[rank], 0, exchange_bytes(size)));
        check(cudaHostAlloc(reinterpret_cast<void**>(&epoch_), sizeof(*epoch_), cudaHostAllocMapped));
        *epoch_ = 0;
        void* seen = nullptr;
        check(cudaHostGetDevicePointer(&seen, epoch_, 0));
        exchange_.epoch = static_cast<const uint32_t*>(seen);
        check(cudaDeviceSynchronize());  // peers may write as soon as they have the handle
    } catch (...) {
        cudaFreeHost(epoch_);
        cudaFree(exchange_.buffers[rank]);
        throw;
    }
}

ExchangeBuffer::~ExchangeBuffer() {
    close_peers();
    cudaFree(exchange_.buffers[exchange_.rank]);
    cudaFreeHost(epoch_);
}

std::string ExchangeBuffer::handle() const {
    cudaIpcMemHandle_t handle;
    check(cudaIpcGetMemHandle(&handle, exchange_.buffers[exchange_.rank]));
    return std::string(reinterpret_cast<const char*>(&handle), sizeof(handle));
}

void ExchangeBuffer::connect(const std::vector<std::string>& handles) {
    require(static_cast<int>(handles.size()) == exchange_.size, "handles must be one of each rank");
    for (const std::string& handle : handles)
        require(handle.size() == sizeof(cudaIpcMemHandle_t), "handles must come from ExchangeBuffer.handle");
    close_peers();
    for (int rank = 0; rank < exchange_.size; ++rank) {
        if (rank == exchange_.rank) continue;
        cudaIpcMemHandle_t handle;
        std::memcpy(&handle, handles[rank].data(), sizeof(handle));
        check(cudaIpcOpenMemHandle(&exchange_.buffers[rank], handle, cudaIpcMemLazyEnablePeerAccess));
    }
    connected_ = true;
}

void ExchangeBuffer::close_peers() {
    connected_ = false;
    for (int rank = 0; rank < exchange_.size; ++rank) {
        if (rank == exchange_.rank || exchange_.buffers[rank] == nullptr) continue;
        cudaIpcCloseMemHandle(exchange_.buffers[rank]);
        exchange_.buffers[rank] = nullptr;
    }
}

void ExchangeBuffer::raise_epoch() {
    std::atomic_ref(*epoch_).fetch_add(1, std::memory_order_release);
}

const Exchange& ExchangeBuffer::exchange() const {
    require(connected_, "an exchange buffer must be connected to its peers before it is used");
    return exchange_;
}

}  // namespace fastserve::cuda
