// How the ranks of a group merge their partial sums inside one host: shared memory, flags and an epoch.
//
// Words. The columns of a [rows, D] matrix are cut into R *chunks*, one per rank; the cut depends on D and R
// alone (segments.h). A chunk is cut into *segments*: the unit that is computed by one thread, published with
// a flag of its own, and moved. A *hop* is a segment going from one rank to the next.
//
// Order. Chunk c is summed starting at rank c + 1 and ending at rank c (modulo R), its *owner*:
//     ((p[c+1] + p[c+2]) + p[c+3]) + ... + p[c]
// Three algorithms do these additions in this order, so choose_all_reduce changes speed and never bits:
// - one-shot: every rank writes its partials to all others too, and adds all R of each segment.
// - two-shot: every rank writes its partials of chunk c to the owner, straight from the registers where they
// were
//   computed. The owner adds them and writes the sum to everybody.
// - ring: rank c + 1 writes its partial to c + 2, who adds its own and writes the sum to c + 3, and so on;
// the
//   owner, whom it reaches last, writes it to everybody.
// Nobody reads another rank's memory: a store that misses waits in a buffer while the core goes on, a load
// does not.
//
// Memory. Each rank owns a symmetric buffer of two halves; collective number s (all ranks count alike, from
// 1) uses half s % 2. A half has a *work* area of a whole matrix - the own partials, and the finished chunks
// of others - and an *inbox* of R slots: of one-shot and two-shot a slot per sender, of the ring one per
// chunk. A flag per (rank, segment) holds the number of the last collective in which the rank published that
// segment, so flags only grow and are never reset. In all algorithms a rank publishes a segment exactly once:
// its partial, or, as the owner of the chunk in two-shot and ring, the finished sum.
//
// Why two consecutive collectives need no barrier. Rank r may write into a half of rank q in collective s + 2
// only when q reads it for collective s no more. Before r leaves collective s + 1 it has waited for at least
// one flag of every other rank q with number s + 1: one-shot and all_gather wait for all ranks; two-shot and
// ring wait for the owner of every chunk, and are not chosen when a chunk is empty. A thread of q raises a
// flag to s + 1 only after the threads of q's team met at a barrier behind collective s, hence after q's last
// read of its half in s. That read happens before the flag (barrier, then release store), the flag before r's
// acquire load, and that before r's write in s + 2 (r's own team barrier). Therefore: the threads of a team
// meet between collectives. The replay loop's barrier between ops does it; all_gather and barrier do it
// themselves; the row slices of a large matrix put one in between.
// Within a collective the owner of chunk c writes it into a work area only after that rank's partial of c has
// left it.
//
// Why nothing deadlocks. A thread first computes all its partials, without waiting; then it sums what is to
// be summed here, then it takes what others have finished. In two-shot sums wait for partials alone. In the
// ring a thread handles its segments in the order chunk r - 1, r - 2, ..., r: rank r adds to chunk r - 1 - h
// at hop h, and the wait at hop h is for a publication at hop h - 1; by induction over h every wait ends,
// however many threads each rank has.
//
// Loss. Every wait polls the region's epoch. Once it was raised, waits for what was not published return at
// once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "ops.h"
#include "ring/choose_all_reduce.h"
#include "ring/pusher.h"

namespace fastserve {

class SharedRegion;

// One collective under way; the same on every thread of the team.
struct Collective {
    uint64_t number;
    int32_t half;  // of every rank's symmetric buffer
    bool crowded;  // more threads than cores: waits yield at once
    int32_t num_threads;
};

class Exchange {
  public:
    // Takes the place of `rank` in the region, once in the region's life. Throws std::invalid_argument.
    Exchange(std::shared_ptr<SharedRegion> region, int rank);
    ~Exchange();
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;

    int rank() const { return rank_; }
    int size() const { return size_; }
    SharedRegion& region() const { return *region_; }
    const std::shared_ptr<SharedRegion>& shared_region() const { return region_; }
    // True once the epoch was raised (a rank died, the group closes): waits return at once from then on,
    // results are garbage, and the replay loop gives the step up. Kernels throw nothing.
    bool failed() const;
    // True once a wait of this rank was given up: a result since the start is garbage. (A peer that leaves
    // after the last collective raises the epoch, which spoils no result.)
    bool gave_up() const { return gave_up_.load(std::memory_order_acquire); }
    // Ends the group for all ranks.
    void raise_epoch();
    // This rank takes part in no further collective; whoever waits for one gives up. The destructor does it
    // too.
    void leave();

    size_t gather_capacity() const { return half_bytes_; }  // bytes a rank may contribute to one all_gather
    // Rows of a [rows, d] matrix that one collective can merge; 0: the buffers do not hold one row.
    int32_t rows_per_slice(int32_t d) const;

    // Collective, called by all threads of the team of every rank with the same `mine` and bytes. Meets the
    // team first, so `mine` may come from any thread. Returns the ranks' parts: rank r's lies at result + r *
    // stride. Valid until this rank's
    // next collective: a peer that saw it begin may be ahead by one, in the half of this result.
    const uint8_t* all_gather(const void* mine, size_t bytes, size_t* stride, const Worker& worker);
    // Returns when all threads of all ranks have come here.
    void barrier(const Worker& worker);

    // What the kernels are made of. All threads call begin, then publish and wait for segments, then end; the
    // team meets before the next begin.
    Collective begin(const Worker& worker) const;
    void end(const Worker& worker);
    float* work(const Collective& collective, int rank) const;
    float* inbox(const Collective& collective, int owner, int slot) const;
    void publish(const Collective& collective, int32_t segment);
    bool ready(const Collective& collective, int rank, int32_t segment) const;
    void wait(const Collective& collective, int rank, int32_t segment);

    // How to write into other ranks' buffers.
    Pusher& pusher() { return pusher_; }

    // Instead of a collective whose one row does not fit the buffers: gives up, and ends the group.
    void refuse_too_large();

    int32_t team_threads() const { return team_threads_; }
    AllReduceAlgorithm algorithm(int32_t rows, int32_t d) const;
    // Tests and benchmarks: -1 lets choose_all_reduce decide; else an AllReduceAlgorithm, the same on all
    // ranks.
    void force_algorithm(int32_t algorithm) { forced_algorithm_ = algorithm; }

    // Of the fused op: tiles published while this rank still had tiles to compute, since the start.
    int64_t tiles_sent_early() const { return tiles_sent_early_.load(std::memory_order_relaxed); }
    void count_computed() { tiles_computed_.fetch_add(1, std::memory_order_relaxed); }
    void count_sent(int32_t num_tiles);

    // This rank is alive and goes on; whoever watches it for hanging looks at the count.
    void beat();

    // Faults of tests: called before each segment is published; null calls nothing. Between collectives only.
    void observe(void (*published)(void*), void* observer) {
        published_ = published;
        observer_ = observer;
    }

    // How long this rank has waited for others, a thread's average; whoever runs steps adds how long they
    // took.
    int64_t waiting_ns() const;
    void add_step(int64_t elapsed_ns);

    // Called now and then by a wait that has become a sleep; true gives up and raises the epoch (Ctrl-C).
    void set_interrupted(bool (*interrupted)()) { interrupted_ = interrupted; }

  private:
    std::shared_ptr<SharedRegion> region_;
    int rank_;
    int size_;
    int32_t team_threads_;
    size_t half_bytes_, slot_bytes_;
    int num_cores_;
    int32_t forced_algorithm_ = -1;
    bool (*interrupted_)() = nullptr;
    void (*published_)(void*) = nullptr;
    void* observer_ = nullptr;
    std::atomic<bool> gave_up_{false};
    Pusher pusher_;
    // Shared by the team. The last thread to end a collective counts it; the others have read the number by
    // then.
    alignas(128) std::atomic<uint64_t> number_{0};
    std::atomic<int32_t> num_ended_{0};
    alignas(128) std::atomic<int32_t> tiles_computed_{0};
    std::atomic<int64_t> tiles_sent_early_{0};
};

std::unique_ptr<Exchange> make_exchange(std::shared_ptr<SharedRegion> region, int rank);

}  // namespace fastserve
