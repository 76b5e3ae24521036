#include "weights/packed_buffer.h"

#include <sys/mman.h>

#include <new>

#include "weights/packed_layout.h"

namespace fastserve {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;

// `bytes` of zeros at a multiple of `alignment`, both multiples of the page size: what lies outside is given
// back.
void* map_aligned(size_t bytes, size_t alignment) {
    void* mapped =
        mmap(nullptr, bytes + alignment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    auto* begin = static_cast<uint8_t*>(mapped);
    const size_t head = (alignment - reinterpret_cast<uintptr_t>(begin) % alignment) % alignment;
    if (head > 0) munmap(begin, head);
    munmap(begin + head + bytes, alignment - head);
    return begin + head;
}

}  // namespace

PackedBuffer::PackedBuffer(WeightType type, int64_t n, int64_t k)
    : view_{}, num_bytes_(static_cast<size_t>(packed_bytes(type, n, k))) {
    const size_t unit = num_bytes_ >= kHugePage ? kHugePage : kPage * 16;  // pages of 64 KiB exist on aarch64
    mapped_bytes_ = (num_bytes_ + unit - 1) / unit * unit;
    data_ = map_aligned(mapped_bytes_, unit);
    if (unit == kHugePage)
        madvise(data_, mapped_bytes_, MADV_HUGEPAGE);  // a wish: without it all works, slower
    view_ = {.data = data(),
             .type = type,
             .n = static_cast<int32_t>(n),
             .k = static_cast<int32_t>(k),
             .panel_bytes = panel_bytes(type, k)};
}

PackedBuffer::PackedBuffer(PackedBuffer&& other) noexcept
    : view_(other.view_),
      num_bytes_(other.num_bytes_),
      data_(other.data_),
      mapped_bytes_(other.mapped_bytes_) {
    other.view_ = {};
    other.num_bytes_ = 0;
    other.data_ = nullptr;
}

PackedBuffer::~PackedBuffer() {
    if (data_ != nullptr) munmap(data_, mapped_bytes_);
}

}  // namespace fastserve
