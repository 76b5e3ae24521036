// A packed weight and the memory that it lives in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "ops.h"

namespace fastserve {

// Zeroed memory in huge pages, where the kernel grants them: a stream of weights misses the TLB once per 2
// MiB and the hardware's prefetchers need not stop every 4 KiB (one core of a Zen 4 reads 24 GB/s instead of
// 19). Buffers lie one behind the other in the order of their making, so a program that packs its weights in
// the order of its ops reads them as one stream. Not copyable; a move leaves the source empty.
class PackedBuffer {
  public:
    // Throws std::invalid_argument naming the argument that is wrong, std::bad_alloc.
    PackedBuffer(WeightType type, int64_t n, int64_t k);
    PackedBuffer(PackedBuffer&& other) noexcept;
    PackedBuffer(const PackedBuffer&) = delete;
    PackedBuffer& operator=(const PackedBuffer&) = delete;

    const PackedWeight& view() const { return view_; }
    uint8_t* data() { return data_; }
    size_t num_bytes() const { return num_bytes_; }

  private:
    class Slab;
    void place(size_t bytes);

    PackedWeight view_;
    size_t num_bytes_;
    std::shared_ptr<Slab> slab_;  // given back with the last of its buffers
    uint8_t* data_;
};

}  // namespace fastserve
