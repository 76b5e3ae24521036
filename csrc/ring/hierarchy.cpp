#include "ring/hierarchy.h"

#include <vector>

namespace fastserve {

bool Hierarchy::takes(int64_t count, const Reduction& reduction) const {
    // An average of integers is rounded down, which may happen once only.
    const bool is_float = reduction.type < DataType::u8;
    return local_.size() > 1 && across_.size() > 1 && (is_float || !reduction.average) &&
           count * static_cast<int64_t>(size_of(reduction.type)) >= kMinBytes;
}

bool Hierarchy::all_reduce(void* data, int64_t count, const Reduction& reduction) {
    const int64_t element = static_cast<int64_t>(size_of(reduction.type));
    const int64_t per_chunk = count / local_.size(), rest = count % local_.size();
    std::vector<void*> chunks;
    for (int c = 0; c < local_.size(); ++c)
        chunks.push_back(static_cast<uint8_t*>(data) + c * per_chunk * element);
    void* mine = chunks[static_cast<size_t>(local_.rank())];
    if (!local_.reduce_scatter(chunks.data(), mine, per_chunk, reduction)) return false;
    const bool compresses = compressed_ && CompressedAllReduce::takes(per_chunk, reduction);
    const bool is_whole = compresses ? compressed_->all_reduce(static_cast<float*>(mine), per_chunk)
                                     : across_.all_reduce(mine, per_chunk, reduction);
    if (!is_whole) return false;
    if (!local_.all_gather(mine, chunks.data(), per_chunk * element)) return false;
    void* tail = static_cast<uint8_t*>(data) + local_.size() * per_chunk * element;
    return rest == 0 || whole_.all_reduce(tail, rest, reduction);
}

}  // namespace fastserve
