// A packed weight and the memory that it lives in.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops.h"

namespace fastserve {

// Zeroed, at least page-aligned memory that the kernel may back with huge pages: streams of weights then miss
// the TLB once per 2 MiB. Not copyable; a move leaves the source empty.
class PackedBuffer {
  public:
    // Throws std::invalid_argument naming the argument that is wrong, std::bad_alloc.
    PackedBuffer(WeightType type, int64_t n, int64_t k);
    ~PackedBuffer();
    PackedBuffer(PackedBuffer&& other) noexcept;
    PackedBuffer(const PackedBuffer&) = delete;
    PackedBuffer& operator=(const PackedBuffer&) = delete;

    const PackedWeight& view() const { return view_; }
    uint8_t* data() { return static_cast<uint8_t*>(data_); }
    size_t num_bytes() const { return num_bytes_; }

  private:
    PackedWeight view_;
    size_t num_bytes_;
    void* data_;
    size_t mapped_bytes_;
};

}  // namespace fastserve
