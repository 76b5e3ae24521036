// Sums that all ranks get: one-shot, two-shot, and of memory that all of them see.
#include "ring/collectives.h"

#include <algorithm>

#include "ring/copy.h"

namespace fastserve {

namespace {

// A finished chunk is pushed in blocks while they are in the first-level cache.
constexpr int64_t kPushBlock = 16 * 1024;

// In the order of the parts, of which there is one for each rank; every out gets the result.
void reduce_parts(const void* const* parts, int num_parts, int64_t count, const Reduction& reduction,
                  std::span<void* const> outs) {
    op_table().reduce({.parts = parts,
                       .num_parts = num_parts,
                       .count = count,
                       .type = reduction.type,
                       .op = reduction.op,
                       .average = reduction.average,
                       .outs = outs.data(),
                       .num_outs = static_cast<int32_t>(outs.size())});
}

}  // namespace

void Collectives::reduce_chunk(const uint8_t* mine, int64_t count, int c, int64_t offset,
                               const Reduction& reduction, std::span<void* const> outs,
                               uint64_t number) const {
    const void* parts[kMaxRanks];
    int rank = c;
    for (int i = 0; i < size_; ++i) {
        rank = next(rank);
        parts[i] = rank == rank_ ? mine : arrived(Area::scatter, rank, number) + offset;
    }
    reduce_parts(parts, size_, count, reduction, outs);
}

bool Collectives::all_reduce(void* data, int64_t count, const Reduction& reduction) {
    begin();
    if (size_ == 1 || count == 0) return end();
    uint8_t* bytes = static_cast<uint8_t*>(data);
    if (goes_in_one_shot(count * reduction.element_bytes()))
        return all_reduce_one_shot(bytes, count, reduction);
    return all_reduce_two_shot(bytes, count, reduction);
}

// Nobody writes chunk c but rank c, and that after all have said that their buffers are ready; nobody uses
// the result before all have said that their chunks are written. One-shot's copies take longer than the
// second meeting, unless that waits for a core.
bool Collectives::all_reduce_symmetric(int64_t offset, int64_t count, const Reduction& reduction) {
    const int64_t element = reduction.element_bytes();
    if (crowded_ && goes_in_one_shot(count * element))
        return all_reduce(memory_->heap(rank_) + offset, count, reduction);
    begin();
    meet(Area::scatter);
    const Span own = chunk(count, rank_);
    // A line of a peer is written as soon as it is read (cpu/reduce.cpp).
    if (own.size() > 0 && !lost_) {
        const void* parts[kMaxRanks];
        void* outs[kMaxRanks];
        int rank = rank_;
        for (int p = 0; p < size_; ++p) {
            rank = next(rank);
            parts[p] = outs[p] = memory_->heap(rank) + offset + own.begin * element;
        }
        reduce_parts(parts, size_, own.size(), reduction, {outs, static_cast<size_t>(size_)});
    }
    meet(Area::gather);
    return end();
}

bool Collectives::all_reduce_one_shot(uint8_t* data, int64_t count, const Reduction& reduction) {
    const int64_t element = reduction.element_bytes();
    const uint64_t number = ++number_;
    for (int to = next(rank_); to != rank_; to = next(to))
        push(Area::scatter, to, number, data, count * element);
    for (int from = next(rank_); from != rank_; from = next(from)) wait(Area::scatter, from, number);
    for (int c = 0; c < size_; ++c) {
        const Span span = chunk(count, c);
        uint8_t* mine = data + span.begin * element;
        if (span.size() > 0) reduce_chunk(mine, span.size(), c, span.begin * element, reduction, number);
    }
    return end();
}

bool Collectives::all_reduce_two_shot(uint8_t* data, int64_t count, const Reduction& reduction) {
    const int64_t element = reduction.element_bytes();
    const int64_t per_slice = slice_elements(element) * size_;
    const int64_t num_slices = (count + per_slice - 1) / per_slice;
    const uint64_t first = number_ + 1;
    number_ += static_cast<uint64_t>(num_slices);
    const auto place = [&](int64_t slice, int c) {
        const Span span = chunk(std::min(count - slice * per_slice, per_slice), c);
        return Span{slice * per_slice + span.begin, slice * per_slice + span.end};
    };
    const auto scatter = [&](int64_t slice) {
        for (int to = next(rank_); to != rank_; to = next(to)) {
            const Span span = place(slice, to);
            push(Area::scatter, to, first + static_cast<uint64_t>(slice), data + span.begin * element,
                 span.size() * element);
        }
    };
    // The next slice is on its way before this one is waited for. Who sends slice s has read the results of s
    // - 2, and who sends the results of s has read the parts of s.
    scatter(0);
    for (int64_t slice = 0; slice < num_slices && !lost_; ++slice) {
        const uint64_t number = first + static_cast<uint64_t>(slice);
        if (slice + 1 < num_slices) scatter(slice + 1);
        for (int from = next(rank_); from != rank_; from = next(from)) {
            wait(Area::scatter, from, number);
            if (slice >= 2) proven(Area::gather, from, number - 2);
        }
        const Span own = place(slice, rank_);
        uint8_t* slots[kMaxRanks];  // of the ranks of this host, which get the result block by block
        for (int to = next(rank_); to != rank_; to = next(to))
            slots[to] = is_remote(to) ? nullptr : fillable(Area::gather, to, number);
        const int64_t block = kPushBlock / element;
        for (int64_t i = own.begin; i < own.end; i += block) {
            const int64_t n = std::min(block, own.end - i), offset = (i - own.begin) * element;
            uint8_t* mine = data + i * element;
            reduce_chunk(mine, n, rank_, offset, reduction, number);
            for (int to = next(rank_); to != rank_; to = next(to))
                if (slots[to]) pusher_.push(slots[to] + offset, mine, n * element);
        }
        for (int to = next(rank_); to != rank_; to = next(to)) {
            if (slots[to])
                raise(Area::gather, to, number);
            else
                push(Area::gather, to, number, data + own.begin * element, own.size() * element);
        }
        for (int from = next(rank_); from != rank_; from = next(from)) {
            wait(Area::gather, from, number);
            proven(Area::scatter, from, number);
            const Span span = place(slice, from);
            copy(data + span.begin * element, arrived(Area::gather, from, number), span.size() * element);
        }
    }
    return end();
}

}  // namespace fastserve
