#include "exchange_buffer.h"

#include <cstring>

#include "arguments.h"
#include "runtime.cuh"

namespace fastserve::cuda {

namespace {

void check_rank(int rank, int size) {
    require(2 <= size && size <= kMaxExchangeRanks, "size must be in [2, 8]");
    require(0 <= rank && rank < size, "rank must be in [0, size)");
}

}  // namespace

// The epoch that kernels expect is 0, not what the word holds by now: it may have been raised already.
ExchangeBuffer::ExchangeBuffer(int rank, int size, uint32_t* epoch)
    : epoch_((check_rank(rank, size), epoch)) {
    exchange_.rank = rank;
    exchange_.size = size;
    exchange_.epoch = epoch_.on_device();
    void*& own = exchange_.buffers[rank];
    try {
        check(cudaMalloc(&own, exchange_bytes(size)));
        check(cudaMemset(own, 0, exchange_bytes(size)));
        check(cudaDeviceSynchronize());  // peers may write as soon as they have the handle
    } catch (...) {
        cudaFree(own);
        throw;
    }
}

ExchangeBuffer::~ExchangeBuffer() {
    close_peers();
    cudaFree(exchange_.buffers[exchange_.rank]);
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

const Exchange& ExchangeBuffer::exchange() const {
    require(connected_, "an exchange buffer must be connected to its peers before it is used");
    return exchange_;
}

}  // namespace fastserve::cuda
