#include "weights/packed_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>

#include "weights/packed_layout.h"

namespace fastserve {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSlab = 32 * kHugePage;
constexpr size_t kAlignment = 128;  // two lines, which x86 fetches together

// Zeros at a multiple of the huge page: what lies outside is given back.
void* map_huge_pages(size_t bytes) {
    void* mapped =
        mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    auto* begin = static_cast<uint8_t*>(mapped);
    const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (head > 0) munmap(begin, head);
    munmap(begin + head + bytes, kHugePage - head);
    madvise(begin + head, bytes, MADV_HUGEPAGE);  // a wish: without it all works, slower
    return begin + head;
}

size_t round_up(size_t bytes, size_t unit) {
    return (bytes + unit - 1) / unit * unit;
}

}  // namespace

// Address space for many buffers; pages that none has touched take no memory.
class PackedBuffer::Slab {
  public:
    explicit Slab(size_t bytes) : data_(static_cast<uint8_t*>(map_huge_pages(bytes))), bytes_(bytes) {}
    ~Slab() { munmap(data_, bytes_); }
    Slab(const Slab&) = delete;
    Slab& operator=(const Slab&) = delete;

    // nullptr if they don't fit any more.
    uint8_t* take(size_t bytes) {
        if (bytes > bytes_ - used_) return nullptr;
        uint8_t* const taken = data_ + used_;
        used_ += round_up(bytes, kAlignment);
        return taken;
    }

  private:
    uint8_t* data_;
    size_t bytes_, used_ = 0;  // multiples of kAlignment
};

void PackedBuffer::place(size_t bytes) {
    static std::mutex mutex;
    static std::weak_ptr<Slab> open;  // the last one, while a buffer of it lives
    const std::lock_guard lock(mutex);
    slab_ = open.lock();
    data_ = slab_ ? slab_->take(bytes) : nullptr;
    if (data_ != nullptr) return;
    slab_ = std::make_shared<Slab>(std::max(kSlab, round_up(bytes, kHugePage)));
    data_ = slab_->take(bytes);
    open = slab_;
}

PackedBuffer::PackedBuffer(WeightType type, int64_t n, int64_t k)
    : view_{}, num_bytes_(static_cast<size_t>(packed_bytes(type, n, k))) {
    place(num_bytes_);
    view_ = {.data = data(),
             .type = type,
             .n = static_cast<int32_t>(n),
             .k = static_cast<int32_t>(k),
             .panel_bytes = panel_bytes(type, k)};
}

PackedBuffer::PackedBuffer(PackedBuffer&& other) noexcept
    : view_(std::exchange(other.view_, {})),
      num_bytes_(std::exchange(other.num_bytes_, 0)),
      slab_(std::move(other.slab_)),
      data_(std::exchange(other.data_, nullptr)) {}

}  // namespace fastserve
