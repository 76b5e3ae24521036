// This rank's exchange buffer in device memory, and its peers' mapped beside it. Needs no header of CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "epoch_word.h"
#include "launch.h"

namespace fastserve::cuda {

class ExchangeBuffer {
  public:
    // On the current device, zeroed. epoch: as for EpochWord.
    // Throws std::invalid_argument unless 0 <= rank < size and 2 <= size <= 8.
    ExchangeBuffer(int rank, int size, uint32_t* epoch = nullptr);
    ~ExchangeBuffer();
    ExchangeBuffer(const ExchangeBuffer&) = delete;
    ExchangeBuffer& operator=(const ExchangeBuffer&) = delete;

    // What another process of this host maps the buffer by (CUDA IPC), opaque.
    std::string handle() const;
    // Maps those of all ranks, in their order; this rank's own is passed over. Throws std::invalid_argument
    // for a wrong number, or one that is no handle.
    void connect(const std::vector<std::string>& handles);
    // Ends every kernel that waits for a peer: of this rank, with a group's epoch of all ranks; what they
    // have computed is undefined. From any thread.
    void raise_epoch() { epoch_.raise(); }

    // For the launchers. Throws std::invalid_argument before connect.
    const Exchange& exchange() const;

  private:
    void close_peers();

    EpochWord epoch_;
    Exchange exchange_ = {};
    bool connected_ = false;
};

}  // namespace fastserve::cuda
