#include "ring/peer_memory.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fastserve {

namespace {

// All slots of an inbox that one collective fills should stay in a second-level cache of 1 MB, with what is
// read beside them; below 32 KB a slice is too short for its flags.
constexpr size_t kInboxSlots = 512 * 1024;
constexpr size_t kMinSlot = 8 * 1024;
constexpr size_t kPage = 4096;

size_t pages(size_t bytes) {
    return (bytes + kPage - 1) / kPage * kPage;
}

size_t num_flags(int num_ranks) {
    return 1 + 4 * static_cast<size_t>(num_ranks);  // done; two areas; heads and tails
}

size_t flags_bytes(int num_ranks) {
    return pages(num_flags(num_ranks) * sizeof(Flag));
}

size_t inbox_bytes(int num_ranks) {
    const size_t ranks = static_cast<size_t>(num_ranks);
    return ranks * (4 * PeerMemory::slot_bytes(num_ranks) + PeerMemory::kMailBytes);
}

}  // namespace

size_t PeerMemory::slot_bytes(int num_ranks) {
    return std::max(kInboxSlots / static_cast<size_t>(num_ranks) / kPage * kPage, kMinSlot);
}

size_t PeerMemory::num_bytes(int num_ranks, size_t heap_bytes) {
    return static_cast<size_t>(num_ranks) *
           (flags_bytes(num_ranks) + pages(inbox_bytes(num_ranks)) + pages(heap_bytes));
}

PeerMemory::PeerMemory(std::shared_ptr<SharedRegion> region)
    : region_(std::move(region)),
      size_(region_->num_ranks()),
      slot_bytes_(slot_bytes(size_)),
      inbox_bytes_(pages(fastserve::inbox_bytes(size_))),
      flags_bytes_(fastserve::flags_bytes(size_)),
      memory_(static_cast<uint8_t*>(region_->extra())) {
    const size_t without_heap = num_bytes(size_);
    if (region_->extra_bytes() < without_heap)
        throw std::invalid_argument("a group of " + std::to_string(size_) + " ranks needs " +
                                    std::to_string(without_heap) + " bytes of peer memory, got " +
                                    std::to_string(region_->extra_bytes()));
    heap_bytes_ = (region_->extra_bytes() - without_heap) / static_cast<size_t>(size_) / kPage * kPage;
    heaps_ = memory_ + without_heap;
}

uint8_t* PeerMemory::inbox(int owner) const {
    return memory_ + static_cast<size_t>(size_) * flags_bytes_ + static_cast<size_t>(owner) * inbox_bytes_;
}

uint8_t* PeerMemory::slot(int owner, Area area, int half, int sender) const {
    const int index = (static_cast<int>(area) * 2 + half) * size_ + sender;
    return inbox(owner) + static_cast<size_t>(index) * slot_bytes_;
}

uint8_t* PeerMemory::mail(int owner, int sender) const {
    return inbox(owner) + static_cast<size_t>(4 * size_) * slot_bytes_ +
           static_cast<size_t>(sender) * kMailBytes;
}

}  // namespace fastserve
