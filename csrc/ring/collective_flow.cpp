// How a rank's collectives wait for the others and hand them what is theirs: flags, slots and their counts.
#include "ring/collectives.h"

#include <unistd.h>

#include <algorithm>

#include "ring/choose_all_reduce.h"
#include "ring/wait.h"

namespace fastserve {

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

void Collectives::meet(Area area) {
    const uint64_t number = ++number_;
    for (int to = next(rank_); to != rank_; to = next(to)) raise(area, to, number);
    for (int from = next(rank_); from != rank_; from = next(from)) wait(area, from, number);
}

}  // namespace fastserve
