// One collective of an all-reduce, seen from one thread: make the own partial sums segment by segment,
// publish them, and add what the other ranks have published. csrc/ring/exchange.h fixes the words and the
// order of the sum.
//
// The segments of the ring order are dealt to the team's threads in turn. A thread makes, sums and finishes
// the segments that are its own; while it still has some to make, it sums those for which the peers are
// ready.
#pragma once

#include "cpu/simd.h"
#include "ring/exchange.h"
#include "ring/segments.h"
#include "ring/shared_region.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

struct RowSlice {
    int32_t row_begin, row_end;
    int32_t rows() const { return row_end - row_begin; }
};

// sum[i] += addend[i] with the addend first: the running sum comes from before this rank.
FASTSERVE_INLINE void add_to(float* sum, const float* running, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) store(sum + i, add(load(running + i), load(sum + i)));
}

class RingReduce {
  public:
    FASTSERVE_INLINE RingReduce(Exchange& exchange, int32_t d, RowSlice slice, float* out, int64_t ldo,
                                const Worker& worker)
        : exchange_(exchange),
          collective_(exchange.begin(worker)),
          algorithm_(exchange.algorithm(slice.rows(), d)),
          segments_(d, exchange.size()),
          slice_(slice),
          out_(out),
          ldo_(ldo),
          thread_idx_(worker.thread_idx),
          num_threads_(worker.num_threads),
          num_segments_(segments_.count()),
          num_own_((num_segments_ - worker.thread_idx + worker.num_threads - 1) / worker.num_threads) {}

    // make(segment, to): writes the own partial of the slice's rows and the segment's columns, row stride
    // segment.ld().
    template <class Make>
    FASTSERVE_INLINE void run(const Worker& worker, Make make) {
        int32_t summed = 0;
        for (int32_t i = 0; i < num_own_; ++i) {
            const Segment segment = own(i);
            make(segment, partial(exchange_.rank(), segment));
            exchange_.count_computed();
            // A ring publishes the sum, which exists at once only where the chunk's order starts.
            if (algorithm_ == AllReduceAlgorithm::one_shot || starts_here(segment)) publish(segment);
            if (can_sum(own(summed))) sum(own(summed++));
        }
        for (; summed < num_own_; ++summed) {
            wait_to_sum(own(summed));
            sum(own(summed));
        }
        if (algorithm_ == AllReduceAlgorithm::ring) gather();
        exchange_.end(worker);
    }

  private:
    Segment own(int32_t i) const {
        return segments_.in_ring_order(exchange_.rank(), thread_idx_ + i * num_threads_);
    }
    int next(int rank) const { return rank + 1 < exchange_.size() ? rank + 1 : 0; }
    int previous() const { return exchange_.rank() > 0 ? exchange_.rank() - 1 : exchange_.size() - 1; }
    bool starts_here(const Segment& segment) const { return next(segment.chunk) == exchange_.rank(); }
    int64_t count(const Segment& segment) const { return static_cast<int64_t>(slice_.rows()) * segment.ld(); }

    float* partial(int rank, const Segment& segment) const {
        return exchange_.partials(collective_, rank) +
               static_cast<int64_t>(slice_.rows()) * segment.panel_begin * kPanel;
    }

    void publish(const Segment& segment) {
        exchange_.count_sent(num_segments_);
        exchange_.publish(collective_, segment.idx);
    }

    bool can_sum(const Segment& segment) const {
        if (algorithm_ == AllReduceAlgorithm::ring)
            return starts_here(segment) || exchange_.ready(collective_, previous(), segment.idx);
        for (int rank = 0; rank < exchange_.size(); ++rank)
            if (!exchange_.ready(collective_, rank, segment.idx)) return false;
        return true;
    }

    void wait_to_sum(const Segment& segment) {
        if (algorithm_ == AllReduceAlgorithm::ring) {
            if (!starts_here(segment)) exchange_.wait(collective_, previous(), segment.idx);
            return;
        }
        for (int rank = next(exchange_.rank()); rank != exchange_.rank(); rank = next(rank))
            exchange_.wait(collective_, rank, segment.idx);
    }

    void sum(const Segment& segment) {
        if (algorithm_ == AllReduceAlgorithm::one_shot) return sum_all(segment);
        if (starts_here(segment)) return;
        add_to(partial(exchange_.rank(), segment), partial(previous(), segment), count(segment));
        publish(segment);
    }

    // One-shot: all partials of a segment, in the order of its chunk, into `out`.
    void sum_all(const Segment& segment) {
        const float* partials[kMaxRanks];
        int rank = segment.chunk;
        for (int i = 0; i < exchange_.size(); ++i) {
            rank = next(rank);
            partials[i] = partial(rank, segment);
        }
        for (int32_t row = 0; row < slice_.rows(); ++row)
            for (int32_t column = 0; column < segment.ld(); column += kLanes) {
                const int64_t at = static_cast<int64_t>(row) * segment.ld() + column;
                Vec total = load(partials[0] + at);
                for (int i = 1; i < exchange_.size(); ++i) total = add(total, load(partials[i] + at));
                put(segment, row, column, total);
            }
    }

    // Ring: finished segments from their owners into `out`.
    void gather() {
        for (int32_t i = 0; i < num_own_; ++i) {
            const Segment segment = own(i);
            if (segment.chunk != exchange_.rank()) exchange_.wait(collective_, segment.chunk, segment.idx);
            const float* from = partial(segment.chunk, segment);
            for (int32_t row = 0; row < slice_.rows(); ++row)
                for (int32_t column = 0; column < segment.ld(); column += kLanes)
                    put(segment, row, column, load(from + static_cast<int64_t>(row) * segment.ld() + column));
        }
    }

    void put(const Segment& segment, int32_t row, int32_t column, Vec values) {
        float* to = out_ + (slice_.row_begin + row) * ldo_ + segment.column_begin + column;
        const int32_t left = segment.column_end - segment.column_begin - column;
        if (left >= kLanes)
            store(to, values);
        else
            store_n(to, values, left);
    }

    Exchange& exchange_;
    const Collective collective_;
    const AllReduceAlgorithm algorithm_;
    const Segments segments_;
    const RowSlice slice_;
    float* const out_;
    const int64_t ldo_;
    const int32_t thread_idx_, num_threads_, num_segments_, num_own_;
};

// Cuts the rows so that every slice fits the symmetric buffers, and runs a collective for each.
// make(segment, slice, to) as in RingReduce::run.
template <class Make>
FASTSERVE_INLINE void reduce_in_slices(Exchange& exchange, int32_t rows, int32_t d, float* out, int64_t ldo,
                                       const Worker& worker, Make make) {
    const int32_t per_slice = exchange.rows_per_slice(d);
    if (per_slice == 0) return exchange.refuse_too_large();
    for (int32_t row = 0; row < rows; row += per_slice) {
        if (row > 0) team_barrier(worker);
        const RowSlice slice{row, row + per_slice < rows ? row + per_slice : rows};
        RingReduce reduce(exchange, d, slice, out, ldo, worker);
        reduce.run(worker, [&](const Segment& segment, float* to) { make(segment, slice, to); });
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
