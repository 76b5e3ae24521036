// What the ranks of a group write to each other: an inbox per rank, in the shared region's extra bytes.
//
// An inbox has two *areas* (scatter: parts that its owner is to reduce; gather: what is finished), each of
// two halves, each of a slot per sender. Only that sender writes its slot, and raises its flag in the area to
// the number of the collective once the slot is filled. So data goes straight into the memory of who needs
// it, and nobody reads memory of others but his own inbox.
//
//   [num_ranks] { done flag; flags [2 areas][num_ranks]; heads, tails [num_ranks]; }
//   [num_ranks] { slots [2 areas][2 halves][num_ranks][slot_bytes]; mail [num_ranks][mail_bytes] }
//   [num_ranks] { heap }: the callers' symmetric buffers, which every rank of the host may read and write
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "ring/shared_region.h"

namespace fastserve {

enum class Area : int32_t { scatter, gather };

class PeerMemory {
  public:
    static constexpr size_t kMailBytes = 128 * 1024;  // of a pair of ranks, one way

    static size_t slot_bytes(int num_ranks);
    // Of the region's extra bytes, with so large a heap for each rank, in whole pages.
    static size_t num_bytes(int num_ranks, size_t heap_bytes = 0);

    // The heap is what is left of the region's extra bytes. Throws std::invalid_argument where they do not
    // suffice.
    PeerMemory(std::shared_ptr<SharedRegion> region);

    SharedRegion& region() const { return *region_; }
    int size() const { return size_; }
    size_t slot_bytes() const { return slot_bytes_; }
    uint8_t* slot(int owner, Area area, int half, int sender) const;
    Flag& flag(int owner, Area area, int sender) const {
        return flags(owner)[1 + static_cast<int>(area) * size_ + sender];
    }
    size_t heap_bytes() const { return heap_bytes_; }
    uint8_t* heap(int rank) const { return heaps_ + static_cast<size_t>(rank) * heap_bytes_; }
    Flag& done(int rank) const { return flags(rank)[0]; }  // the last collective that the rank has finished
    // Mail from `sender` to `owner`: bytes written and bytes read, ever.
    uint8_t* mail(int owner, int sender) const;
    Flag& head(int owner, int sender) const { return flags(owner)[1 + 2 * size_ + sender]; }
    Flag& tail(int owner, int sender) const { return flags(owner)[1 + 3 * size_ + sender]; }

  private:
    Flag* flags(int owner) const {
        return reinterpret_cast<Flag*>(memory_ + static_cast<size_t>(owner) * flags_bytes_);
    }
    uint8_t* inbox(int owner) const;

    std::shared_ptr<SharedRegion> region_;
    int size_;
    size_t slot_bytes_, inbox_bytes_, flags_bytes_, heap_bytes_;
    uint8_t *memory_, *heaps_;
};

}  // namespace fastserve
