#include "ring/collectives.h"

#include <unistd.h>

#include <algorithm>

#include "ring/choose_all_reduce.h"
#include "ring/wait.h"

namespace fastserve {

namespace {

// A finished chunk is pushed in blocks while they are in the first-level cache.
constexpr int64_t kPushBlock = 16 * 1024;

int64_t bytes_of(const Reduction& reduction) {
    return static_cast<int64_t>(size_of(reduction.type));
}

void copy_plain(void* to, const void* from, int64_t bytes) {
    op_table().copy({.to = to, .from = from, .bytes = bytes, .stream_bytes = INT64_MAX});
}

const uint8_t* at(const void* base, int64_t offset) {
    return static_cast<const uint8_t*>(base) + offset;
}

uint8_t* at(void* base, int64_t offset) {
    return static_cast<uint8_t*>(base) + offset;
}

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

void copy(void* to, const void* from, int64_t bytes) {
    if (bytes > 0 && to != from) copy_plain(to, from, bytes);
}

}  // namespace

Collectives::Collectives(std::shared_ptr<PeerMemory> memory, int rank, std::shared_ptr<SocketLinks> links)
    : memory_(std::move(memory)),
      links_(std::move(links)),
      rank_(rank),
      size_(memory_->size()),
      crowded_(size_ > sysconf(_SC_NPROCESSORS_ONLN)),
      read_(2 * static_cast<size_t>(size_)),
      filled_(4 * static_cast<size_t>(size_)),
      told_(static_cast<size_t>(size_)) {}

void Collectives::set_interrupted(bool (*interrupted)()) {
    interrupted_ = interrupted;
    if (links_) links_->set_interrupted(interrupted);
}

Collectives::Span Collectives::chunk(int64_t count, int c) const {
    // Chunks begin on cache lines of their own, whatever the type's size.
    constexpr int64_t kLine = 64;
    const int64_t lines = (count + kLine - 1) / kLine;
    const auto bound = [&](int64_t i) { return std::min(i * lines / size_ * kLine, count); };
    return {bound(c), bound(c + 1)};
}

int64_t Collectives::slice_elements(int64_t element_bytes) const {
    constexpr int64_t kLine = 64;
    return static_cast<int64_t>(memory_->slot_bytes()) / element_bytes / kLine * kLine;
}

bool Collectives::goes_in_one_shot(int64_t bytes) const {
    return choose_all_reduce(static_cast<size_t>(bytes), size_) == AllReduceAlgorithm::one_shot;
}

bool Collectives::end() {
    RankSlot& slot = memory_->region().slot(rank_);
    publish_flag(slot, memory_->done(rank_), number_);
    finished_ = number_;
    return !lost_;
}

void Collectives::tell_done() {
    for (int to = 0; links_ && to < size_; ++to) {
        uint64_t& told = told_[static_cast<size_t>(to)];
        if (told == finished_ || !is_remote(to)) continue;
        if (!links_->tell_done(to, finished_)) lost_ = true;
        told = finished_;
    }
}

void Collectives::push_remote(Area area, int to, uint64_t number, const void* data, int64_t bytes) {
    if (!links_->push(area, to, number, finished_, data, bytes)) lost_ = true;
    told_[static_cast<size_t>(to)] = finished_;
}

void Collectives::raise(Area area, int to, uint64_t number) {
    if (is_remote(to)) {
        push_remote(area, to, number, nullptr, 0);
        return;
    }
    publish_flag(memory_->region().slot(rank_), memory_->flag(to, area, rank_), number);
}

void Collectives::proven(Area area, int rank, uint64_t number) {
    uint64_t& read = read_[static_cast<size_t>(static_cast<int>(area) * size_ + rank)];
    read = std::max(read, number);
}

void Collectives::wait_for(int publisher, Flag& flag, uint64_t number) {
    if (links_ && flag.value.load(std::memory_order_acquire) < number) tell_done();
    SharedRegion& region = memory_->region();
    const Waiting waiting{region, region.slot(rank_), crowded_, interrupted_};
    RankSlot& slot = is_remote(publisher) ? links_->slot(publisher) : region.slot(publisher);
    if (!wait_for_flag(waiting, slot, flag, number)) lost_ = true;
}

void Collectives::wait(Area area, int from, uint64_t number) {
    wait_for(from, memory_->flag(rank_, area, from), number);
    proven(Area::scatter, from, before_);
    proven(Area::gather, from, before_);
}

uint8_t* Collectives::fillable(Area area, int to, uint64_t number) {
    const size_t pair = static_cast<size_t>(static_cast<int>(area) * size_ + to);
    uint64_t& filled = filled_[2 * pair + number % 2];
    if (read_[pair] < filled) {
        wait_for(to, memory_->done(to), filled);
        proven(area, to, filled);
    }
    filled = number;
    return memory_->slot(to, area, static_cast<int>(number % 2), rank_);
}

void Collectives::push(Area area, int to, uint64_t number, const void* data, int64_t bytes) {
    if (bytes > 0) {
        uint8_t* slot = fillable(area, to, number);
        if (is_remote(to)) {
            if (!lost_) push_remote(area, to, number, data, bytes);
            return;
        }
        pusher_.push(slot, data, bytes);
    }
    raise(area, to, number);
}

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
    if (goes_in_one_shot(count * bytes_of(reduction))) return all_reduce_one_shot(bytes, count, reduction);
    return all_reduce_two_shot(bytes, count, reduction);
}

// Nobody writes chunk c but rank c, and that after all have said that their buffers are ready; nobody uses
// the result before all have said that their chunks are written. One-shot's copies take longer than the
// second meeting, unless that waits for a core.
bool Collectives::all_reduce_symmetric(int64_t offset, int64_t count, const Reduction& reduction) {
    const int64_t element = bytes_of(reduction);
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

void Collectives::meet(Area area) {
    const uint64_t number = ++number_;
    for (int to = next(rank_); to != rank_; to = next(to)) raise(area, to, number);
    for (int from = next(rank_); from != rank_; from = next(from)) wait(area, from, number);
}

bool Collectives::all_reduce_one_shot(uint8_t* data, int64_t count, const Reduction& reduction) {
    const int64_t element = bytes_of(reduction);
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
    const int64_t element = bytes_of(reduction);
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

bool Collectives::reduce_scatter(const void* const* in, void* out, int64_t count,
                                 const Reduction& reduction) {
    begin();
    const int64_t element = bytes_of(reduction);
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
    const int64_t element = bytes_of(reduction);
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
