// What is moved, scattered and gathered; sums that all ranks get are in all_reduce.cpp, how ranks wait for
// each other in collective_flow.cpp.
#include "ring/collectives.h"

#include <algorithm>

#include "ring/copy.h"

namespace fastserve {

bool Collectives::reduce_scatter(const void* const* in, void* out, int64_t count,
                                 const Reduction& reduction) {
    begin();
    const int64_t element = reduction.element_bytes();
    const int64_t per_slice = slice_elements(element);
    for (int64_t i = 0; i < count && !lost_; i += per_slice) {
        const int64_t n = std::min(per_slice, count - i);
        const uint64_t number = ++number_;
        for (int to = next(rank_); to != rank_; to = next(to))
            push(Area::scatter, to, number, at(in[to], i * element), n * element);
        for (int from = next(rank_); from != rank_; from = next(from)) {
            wait(Area::scatter, from, number);
            proven(Area::scatter, from, number - 1);
        }
        void* const to = at(out, i * element);
        reduce_chunk(at(in[rank_], i * element), n, rank_, 0, reduction, {&to, 1}, number);
    }
    return end();
}

bool Collectives::all_gather(const void* in, void* const* out, int64_t bytes) {
    begin();
    copy(out[rank_], in, bytes);
    const int64_t per_slice = static_cast<int64_t>(memory_->slot_bytes());
    int64_t i = 0;
    do {
        const int64_t n = std::min(per_slice, bytes - i);
        const uint64_t number = ++number_;
        for (int to = next(rank_); to != rank_; to = next(to)) push(Area::gather, to, number, at(in, i), n);
        for (int from = next(rank_); from != rank_; from = next(from)) {
            wait(Area::gather, from, number);
            proven(Area::gather, from, number - 1);
            copy(at(out[from], i), arrived(Area::gather, from, number), n);
        }
        i += per_slice;
    } while (i < bytes && !lost_);
    return end();
}

bool Collectives::barrier() {
    std::vector<void*> nowhere(static_cast<size_t>(size_));
    return all_gather(nullptr, nowhere.data(), 0);
}

// Receivers answer each slice with a flag of the other area, and root waits for the answer of two slices ago.
template <class DataOf>
bool Collectives::from_root(int64_t bytes, int root, const DataOf& data_of, void* out) {
    begin();
    const int64_t per_slice = static_cast<int64_t>(memory_->slot_bytes());
    for (int64_t i = 0; i < bytes && !lost_; i += per_slice) {
        const int64_t n = std::min(per_slice, bytes - i);
        const uint64_t number = ++number_;
        if (rank_ != root) {
            wait(Area::gather, root, number);
            copy(at(out, i), arrived(Area::gather, root, number), n);
            raise(Area::scatter, root, number);
            continue;
        }
        for (int to = next(rank_); to != rank_; to = next(to)) {
            if (number > before_ + 2) {
                wait(Area::scatter, to, number - 2);
                proven(Area::gather, to, number - 2);
            }
            push(Area::gather, to, number, at(data_of(to), i), n);
        }
    }
    return end();
}

bool Collectives::broadcast(void* data, int64_t bytes, int root) {
    return from_root(bytes, root, [&](int) -> const void* { return data; }, data);
}

bool Collectives::scatter(const void* const* in, void* out, int64_t bytes, int root) {
    if (rank_ == root) copy(out, in[root], bytes);
    return from_root(bytes, root, [&](int to) { return in[to]; }, out);
}

// take(begin, bytes, number) uses a slice of all others; root answers it with a flag of the other area.
template <class Take>
bool Collectives::to_root(const void* data, int64_t bytes, int64_t slice_bytes, int root, const Take& take) {
    begin();
    for (int64_t i = 0; i < bytes && !lost_; i += slice_bytes) {
        const int64_t n = std::min(slice_bytes, bytes - i);
        const uint64_t number = ++number_;
        if (rank_ != root) {
            if (number > before_ + 2) {
                wait(Area::gather, root, number - 2);
                proven(Area::scatter, root, number - 2);
            }
            push(Area::scatter, root, number, at(data, i), n);
            continue;
        }
        for (int from = next(rank_); from != rank_; from = next(from)) wait(Area::scatter, from, number);
        take(i, n, number);
        for (int to = next(rank_); to != rank_; to = next(to)) raise(Area::gather, to, number);
    }
    return end();
}

bool Collectives::gather(const void* in, void* const* out, int64_t bytes, int root) {
    if (rank_ == root) copy(out[root], in, bytes);
    return to_root(in, bytes, static_cast<int64_t>(memory_->slot_bytes()), root,
                   [&](int64_t begin, int64_t n, uint64_t number) {
                       for (int from = next(rank_); from != rank_; from = next(from))
                           copy(at(out[from], begin), arrived(Area::scatter, from, number), n);
                   });
}

bool Collectives::reduce(void* data, int64_t count, const Reduction& reduction, int root) {
    const int64_t element = reduction.element_bytes();
    return to_root(data, count * element, slice_elements(element) * element, root,
                   [&](int64_t begin, int64_t n, uint64_t number) {
                       for (int c = 0; c < size_; ++c) {
                           const Span span = chunk(n / element, c);
                           uint8_t* mine = at(data, begin + span.begin * element);
                           if (span.size() > 0)
                               reduce_chunk(mine, span.size(), c, span.begin * element, reduction, number);
                       }
                   });
}

bool Collectives::all_to_all(const void* const* in, const int64_t* in_bytes, void* const* out,
                             const int64_t* out_bytes) {
    // The number of slices is everybody's longest part, which nobody knows alone.
    int64_t longest = 0;
    for (int r = 0; r < size_; ++r)
        if (r != rank_) longest = std::max(longest, in_bytes[r]);
    if (!all_reduce(&longest, 1, {DataType::s64, ReduceOp::max, false})) return false;
    return all_to_all_up_to(longest, in, in_bytes, out, out_bytes);
}

bool Collectives::all_to_all_up_to(int64_t longest, const void* const* in, const int64_t* in_bytes,
                                   void* const* out, const int64_t* out_bytes) {
    begin();
    copy(out[rank_], in[rank_], std::min(in_bytes[rank_], out_bytes[rank_]));
    const int64_t per_slice = static_cast<int64_t>(memory_->slot_bytes());
    for (int64_t i = 0; i < longest && !lost_; i += per_slice) {
        const uint64_t number = ++number_;
        for (int to = next(rank_); to != rank_; to = next(to)) {
            const int64_t n = std::clamp<int64_t>(in_bytes[to] - i, 0, per_slice);
            push(Area::scatter, to, number, at(in[to], n > 0 ? i : 0), n);
        }
        for (int from = next(rank_); from != rank_; from = next(from)) {
            wait(Area::scatter, from, number);
            proven(Area::scatter, from, number - 1);
            const int64_t n = std::clamp<int64_t>(out_bytes[from] - i, 0, per_slice);
            if (n > 0) copy(at(out[from], i), arrived(Area::scatter, from, number), n);
        }
    }
    return end();
}

}  // namespace fastserve
