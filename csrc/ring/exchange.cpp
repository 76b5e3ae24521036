#include "ring/exchange.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ring/segments.h"
#include "ring/shared_region.h"
#include "ring/wait.h"

namespace fastserve {

Exchange::Exchange(std::shared_ptr<SharedRegion> region, int rank)
    : region_(std::move(region)),
      rank_(rank),
      size_(region_->num_ranks()),
      team_threads_(region_->team_threads()),
      half_bytes_(region_->half_bytes()),
      slot_bytes_(region_->slot_bytes()),
      num_cores_(static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN))) {
    if (rank < 0 || rank >= size_)
        throw std::invalid_argument("rank must be in [0, " + std::to_string(size_) + "), got " +
                                    std::to_string(rank));
    RankSlot& slot = region_->slot(rank);
    int32_t expected = static_cast<int32_t>(RankState::absent);
    // Flags count from the region's start, so a second exchange of the same rank would begin with wrong
    // numbers.
    if (!slot.state.compare_exchange_strong(expected, static_cast<int32_t>(RankState::present)))
        throw std::invalid_argument("rank " + std::to_string(rank) + " of this group is already taken");
    slot.pid.store(getpid(), std::memory_order_release);
}

Exchange::~Exchange() {
    leave();
}

void Exchange::leave() {
    region_->slot(rank_).state.store(static_cast<int32_t>(RankState::left), std::memory_order_release);
}

bool Exchange::failed() const {
    return region_->failed();
}

void Exchange::raise_epoch() {
    region_->raise_epoch(Loss::closed, getpid());
}

int32_t Exchange::rows_per_slice(int32_t d) const {
    const size_t panel_bytes = kPanel * sizeof(float), ranks = static_cast<size_t>(size_);
    const size_t panels = (static_cast<size_t>(d) + kPanel - 1) / kPanel;
    // With an empty chunk all is one-shot, which sends whole rows; else slots hold a chunk's part of the
    // rows.
    const size_t sent = panels < ranks ? panels : (panels + ranks - 1) / ranks;
    size_t rows = half_bytes_ / (panels * panel_bytes);
    if (size_ > 1) rows = std::min(rows, slot_bytes_ / (sent * panel_bytes));
    return static_cast<int32_t>(std::min<size_t>(rows, INT32_MAX));
}

AllReduceAlgorithm Exchange::algorithm(int32_t rows, int32_t d) const {
    const size_t panels = (static_cast<size_t>(d) + kPanel - 1) / kPanel;
    const size_t bytes = static_cast<size_t>(rows) * panels * kPanel * sizeof(float);
    // With an empty chunk the others would not wait for its owner, which the proof in exchange.h needs.
    if (panels < static_cast<size_t>(size_)) return AllReduceAlgorithm::one_shot;
    const AllReduceAlgorithm chosen = forced_algorithm_ >= 0
                                          ? static_cast<AllReduceAlgorithm>(forced_algorithm_)
                                          : choose_all_reduce(bytes, size_);
    const bool fits = chosen != AllReduceAlgorithm::one_shot || bytes <= slot_bytes_;
    return fits ? chosen : AllReduceAlgorithm::two_shot;
}

Collective Exchange::begin(const Worker& worker) const {
    const uint64_t number = number_.load(std::memory_order_relaxed) + 1;
    return {.number = number,
            .half = static_cast<int32_t>(number % 2),
            .crowded = worker.num_threads * size_ > num_cores_,
            .num_threads = worker.num_threads};
}

void Exchange::end(const Worker& worker) {
    if (num_ended_.fetch_add(1, std::memory_order_acq_rel) + 1 < worker.num_threads) return;
    num_ended_.store(0, std::memory_order_relaxed);
    tiles_computed_.store(0, std::memory_order_relaxed);
    number_.store(number_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

float* Exchange::work(const Collective& collective, int rank) const {
    return reinterpret_cast<float*>(region_->work(rank, collective.half));
}

float* Exchange::inbox(const Collective& collective, int owner, int slot) const {
    return reinterpret_cast<float*>(region_->inbox(owner, collective.half, slot));
}

void Exchange::publish(const Collective& collective, int32_t segment) {
    if (published_) [[unlikely]]
        published_(observer_);
    publish_flag(region_->slot(rank_), region_->flag(rank_, segment), collective.number);
}

bool Exchange::ready(const Collective& collective, int rank, int32_t segment) const {
    return region_->flag(rank, segment).value.load(std::memory_order_acquire) >= collective.number;
}

void Exchange::wait(const Collective& collective, int rank, int32_t segment) {
    using Clock = std::chrono::steady_clock;
    if (ready(collective, rank, segment)) return;
    const Waiting waiting{*region_, region_->slot(rank_), collective.crowded, interrupted_};
    const auto start = Clock::now();
    if (!wait_for_flag(waiting, region_->slot(rank), region_->flag(rank, segment), collective.number))
        gave_up_.store(true, std::memory_order_release);
    const std::chrono::nanoseconds waited = Clock::now() - start;
    region_->slot(rank_).waiting_ns.fetch_add(waited.count() / collective.num_threads,
                                              std::memory_order_relaxed);
}

int64_t Exchange::waiting_ns() const {
    return region_->slot(rank_).waiting_ns.load(std::memory_order_relaxed);
}

void Exchange::add_step(int64_t elapsed_ns) {
    region_->slot(rank_).step_ns.fetch_add(elapsed_ns, std::memory_order_relaxed);
}

void Exchange::beat() {
    region_->slot(rank_).beats.fetch_add(1, std::memory_order_relaxed);
}

void Exchange::count_sent(int32_t num_tiles) {
    if (tiles_computed_.load(std::memory_order_relaxed) < num_tiles)
        tiles_sent_early_.fetch_add(1, std::memory_order_relaxed);
}

void Exchange::refuse_too_large() {
    gave_up_.store(true, std::memory_order_release);
    region_->raise_epoch(Loss::too_large, getpid());
}

const uint8_t* Exchange::all_gather(const void* mine, size_t bytes, size_t* stride, const Worker& worker) {
    team_barrier(worker);
    const Collective collective = begin(worker);
    if (worker.thread_idx == 0) {
        if (bytes > half_bytes_) refuse_too_large();
        std::memcpy(work(collective, rank_), mine, std::min(bytes, half_bytes_));
        publish(collective, kGatherFlag);
    }
    for (int i = 0; i < size_; ++i) wait(collective, (rank_ + i) % size_, kGatherFlag);
    end(worker);
    *stride = region_->buffer_bytes();
    return region_->work(0, collective.half);
}

void Exchange::barrier(const Worker& worker) {
    size_t stride = 0;
    all_gather(&stride, 0, &stride, worker);
}

std::unique_ptr<Exchange> make_exchange(std::shared_ptr<SharedRegion> region, int rank) {
    return std::make_unique<Exchange>(std::move(region), rank);
}

}  // namespace fastserve
