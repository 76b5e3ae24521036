// One collective of an all-reduce, seen from one thread: make the own partial sums segment by segment,
// straight into the memory of who adds them; add what has come; take what others have finished.
// csrc/ring/exchange.h fixes the words, the order of the sum and the algorithms.
//
// The segments of the ring order are dealt to the team's threads in turn. A thread makes, sums and takes the
// segments that are its own; while it still has some to make, it sums and takes those for which the peers are
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

// Where sums go.
struct Sums {
    float* to;
    int64_t ld;
    bool added = false;  // to what is there
};

class RingReduce {
    static constexpr int64_t kMinStreamBytes = 4096;

  public:
    FASTSERVE_INLINE RingReduce(Exchange& exchange, int32_t d, RowSlice slice, const Sums& sums,
                                const Worker& worker)
        : exchange_(exchange),
          collective_(exchange.begin(worker)),
          algorithm_(exchange.algorithm(slice.rows(), d)),
          segments_(d, exchange.size(), slice.rows(), exchange.team_threads()),
          slice_(slice),
          sums_(sums),
          thread_idx_(worker.thread_idx),
          num_threads_(worker.num_threads),
          num_segments_(segments_.count()),
          num_own_((num_segments_ - worker.thread_idx + worker.num_threads - 1) / worker.num_threads) {}

    // make(segment, to): writes the own partial of the slice's rows and the segment's columns, row stride
    // segment.ld().
    template <class Make>
    FASTSERVE_INLINE void run(const Worker& worker, Make make) {
        for (int32_t i = 0; i < num_own_; ++i) {
            const Segment segment = own(i);
            make(segment, target(segment));
            exchange_.count_computed();
            if (algorithm_ == AllReduceAlgorithm::one_shot) send_to_all(segment, mine(segment));
            if (leaves_at_once(segment)) publish(segment);
            while (summed_ <= i && try_sum<false>(own(summed_))) ++summed_;
            while (taken_ < summed_ && try_take<false>(own(taken_))) ++taken_;
        }
        for (; summed_ < num_own_; ++summed_) try_sum<true>(own(summed_));
        for (; taken_ < num_own_; ++taken_) try_take<true>(own(taken_));
        exchange_.end(worker);
    }

  private:
    Segment own(int32_t i) const {
        return segments_.in_ring_order(exchange_.rank(), thread_idx_ + i * num_threads_);
    }
    int next(int rank) const { return rank + 1 < exchange_.size() ? rank + 1 : 0; }
    int previous() const { return exchange_.rank() > 0 ? exchange_.rank() - 1 : exchange_.size() - 1; }
    bool starts_here(const Segment& segment) const { return next(segment.chunk) == exchange_.rank(); }
    bool ends_here(const Segment& segment) const { return segment.chunk == exchange_.rank(); }
    int64_t count(const Segment& segment) const { return static_cast<int64_t>(slice_.rows()) * segment.ld(); }

    // Places: of a segment in a whole matrix, and in its chunk.
    int64_t place(const Segment& segment) const {
        return static_cast<int64_t>(slice_.rows()) * segment.panel_begin * kPanel;
    }
    int64_t place_in_chunk(const Segment& segment) const {
        return place(segment) -
               static_cast<int64_t>(slice_.rows()) * segments_.chunk_begin(segment.chunk) * kPanel;
    }
    float* work(int rank, const Segment& segment) const {
        return exchange_.work(collective_, rank) + place(segment);
    }
    float* mine(const Segment& segment) const { return work(exchange_.rank(), segment); }
    // One-shot's slots hold whole matrices, the others' chunks.
    float* slot(int owner, int slot, const Segment& segment) const {
        const bool whole = algorithm_ == AllReduceAlgorithm::one_shot;
        return exchange_.inbox(collective_, owner, slot) + (whole ? place(segment) : place_in_chunk(segment));
    }

    // Where the own partial belongs.
    float* target(const Segment& segment) const {
        if (algorithm_ == AllReduceAlgorithm::two_shot && !ends_here(segment))
            return slot(segment.chunk, exchange_.rank(), segment);
        if (algorithm_ == AllReduceAlgorithm::ring && starts_here(segment))
            return slot(next(exchange_.rank()), segment.chunk, segment);
        return mine(segment);
    }
    // Whether that is all that this rank does before the chunk is finished.
    bool leaves_at_once(const Segment& segment) const {
        if (algorithm_ == AllReduceAlgorithm::ring) return starts_here(segment);
        return algorithm_ == AllReduceAlgorithm::one_shot || !ends_here(segment);
    }

    void publish(const Segment& segment) {
        exchange_.count_sent(num_segments_);
        exchange_.publish(collective_, segment.idx);
    }

    template <bool kWait>
    bool has_come(int rank, const Segment& segment) {
        if (!kWait) return exchange_.ready(collective_, rank, segment.idx);
        exchange_.wait(collective_, rank, segment.idx);
        return true;
    }

    // One-shot: to the same place in everybody's slot for this rank.
    void send_to_all(const Segment& segment, const float* from) const {
        for (int rank = next(exchange_.rank()); rank != exchange_.rank(); rank = next(rank)) {
            float* to = slot(rank, exchange_.rank(), segment);
            for (int64_t i = 0; i < count(segment); i += kLanes) store(to + i, load(from + i));
        }
    }

    // Adds what is to be added here; false, with kWait never, when a partial has not come.
    template <bool kWait>
    bool try_sum(const Segment& segment) {
        if (algorithm_ == AllReduceAlgorithm::ring) return try_hop<kWait>(segment);
        if (algorithm_ == AllReduceAlgorithm::two_shot && !ends_here(segment)) return true;
        for (int rank = next(exchange_.rank()); rank != exchange_.rank(); rank = next(rank))
            if (!has_come<kWait>(rank, segment)) return false;
        const float* partials[kMaxRanks];
        int rank = segment.chunk;
        for (int i = 0; i < exchange_.size(); ++i) {
            rank = next(rank);
            partials[i] = rank == exchange_.rank() ? mine(segment) : slot(exchange_.rank(), rank, segment);
        }
        finish(segment, algorithm_ == AllReduceAlgorithm::two_shot, [&](int64_t at) {
            Vec total = load(partials[0] + at);
            for (int i = 1; i < exchange_.size(); ++i) total = add(total, load(partials[i] + at));
            return total;
        });
        return true;
    }

    template <bool kWait>
    bool try_hop(const Segment& segment) {
        if (starts_here(segment)) return true;
        if (!has_come<kWait>(previous(), segment)) return false;
        const float *running = slot(exchange_.rank(), segment.chunk, segment), *partial = mine(segment);
        const auto total = [&](int64_t at) { return add(load(running + at), load(partial + at)); };
        if (ends_here(segment)) {
            finish(segment, true, total);
            return true;
        }
        float* to = slot(next(exchange_.rank()), segment.chunk, segment);
        for (int64_t at = 0; at < count(segment); at += kLanes) store(to + at, total(at));
        publish(segment);
        return true;
    }

    // total(at) is the finished sum: into its place, and for everybody if this rank is the only one to add
    // it.
    template <class Total>
    FASTSERVE_INLINE void finish(const Segment& segment, bool for_all, Total total) {
        if (!for_all) return add_up<Pushed::no>(segment, total);
        Pusher& pusher = exchange_.pusher();
        const int64_t bytes = count(segment) * static_cast<int64_t>(sizeof(float));
        if (pusher.probes(bytes)) {
            add_up<Pushed::here>(segment, total);
            for (int rank = next(exchange_.rank()); rank != exchange_.rank(); rank = next(rank))
                pusher.measure(work(rank, segment), mine(segment), bytes);
        } else if (bytes >= kMinStreamBytes && pusher.streams()) {
            add_up<Pushed::past_caches>(segment, total);
            stream_fence();
        } else {
            add_up<Pushed::plainly>(segment, total);
        }
        publish(segment);
    }

    enum class Pushed {
        no,
        here,
        plainly,
        past_caches
    };  // where to, besides its place; here: over the own partial

    template <Pushed kPushed, class Total>
    FASTSERVE_INLINE void add_up(const Segment& segment, Total total) {
        float* others[kMaxRanks];
        int num_others = 0;
        if (kPushed == Pushed::here) others[num_others++] = mine(segment);
        if (kPushed == Pushed::plainly || kPushed == Pushed::past_caches)
            for (int rank = next(exchange_.rank()); rank != exchange_.rank(); rank = next(rank))
                others[num_others++] = work(rank, segment);
        for (int32_t row = 0; row < slice_.rows(); ++row)
            for (int32_t column = 0; column < segment.ld(); column += kLanes) {
                const int64_t at = static_cast<int64_t>(row) * segment.ld() + column;
                const Vec sum = total(at);
                put(segment, row, column, sum);
                for (int i = 0; i < num_others; ++i) {
                    if (kPushed == Pushed::past_caches)
                        stream(reinterpret_cast<uint8_t*>(others[i] + at), as_int(sum));
                    else
                        store(others[i] + at, sum);
                }
            }
    }

    // A finished segment that its owner has written here, into its place.
    template <bool kWait>
    bool try_take(const Segment& segment) {
        if (algorithm_ == AllReduceAlgorithm::one_shot || ends_here(segment)) return true;
        if (!has_come<kWait>(segment.chunk, segment)) return false;
        const float* from = mine(segment);
        for (int32_t row = 0; row < slice_.rows(); ++row)
            for (int32_t column = 0; column < segment.ld(); column += kLanes)
                put(segment, row, column, load(from + static_cast<int64_t>(row) * segment.ld() + column));
        return true;
    }

    void put(const Segment& segment, int32_t row, int32_t column, Vec values) {
        float* to = sums_.to + (slice_.row_begin + row) * sums_.ld + segment.column_begin + column;
        const int32_t left = segment.column_end - segment.column_begin - column;
        if (left >= kLanes)
            store(to, sums_.added ? add(load(to), values) : values);
        else
            store_n(to, sums_.added ? add(load_n(to, left), values) : values, left);
    }

    Exchange& exchange_;
    const Collective collective_;
    const AllReduceAlgorithm algorithm_;
    const Segments segments_;
    const RowSlice slice_;
    const Sums sums_;
    const int32_t thread_idx_, num_threads_, num_segments_, num_own_;
    int32_t summed_ = 0, taken_ = 0;  // of the own segments
};

// How many rows to bring at once: as many as stay in a second-level cache with what is made of them, but not
// so few that a weight is read too often.
struct SliceSize {
    int64_t max_bytes;
    int32_t min_rows;
};

// Cuts the rows into slices of that size, or of what fits the symmetric buffers, and runs a collective for
// each. make(segment, slice, to) as in RingReduce::run. finish(slice): once the whole team has its sums.
template <class Make, class Finish>
FASTSERVE_INLINE void reduce_in_slices(Exchange& exchange, int32_t rows, int32_t d, const Sums& sums,
                                       SliceSize size, const Worker& worker, Make make, Finish finish) {
    int32_t per_slice = exchange.rows_per_slice(d);
    if (per_slice == 0) return exchange.refuse_too_large();
    const int64_t fitting = size.max_bytes / (static_cast<int64_t>(d) * static_cast<int64_t>(sizeof(float)));
    const int64_t wanted = fitting > size.min_rows ? fitting : size.min_rows;
    if (wanted < per_slice) per_slice = static_cast<int32_t>(wanted);
    for (int32_t row = 0; row < rows; row += per_slice) {
        if (row > 0) team_barrier(worker);
        const RowSlice slice{row, row + per_slice < rows ? row + per_slice : rows};
        RingReduce reduce(exchange, d, slice, sums, worker);
        reduce.run(worker, [&](const Segment& segment, float* to) { make(segment, slice, to); });
        finish(slice);
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
