// Collectives on buffers of any type and size, as torch.distributed knows them, over PeerMemory: written
// there by ranks of this host, sent there by those of others (socket_links.h).
//
// (exchange.h is the other half of the rings: matrices of fp32 partial sums, computed by a team of threads
// while they are exchanged. Here one thread brings finished buffers of its own memory.)
//
// Words. A buffer goes in *slices* of at most a slot per chunk. A slice is cut into R *chunks*, one per rank;
// chunk c is reduced in the order of ranks c + 1, c + 2, ..., c (modulo R), by whoever reduces it:
// - one-shot: every rank pushes its slice to all others and reduces it whole. One wait.
// - two-shot: every rank pushes chunk c to rank c alone, reduces its own, and pushes the result to all. Two
//   waits, 2 (R - 1) / R of the buffer written instead of R - 1 times.
// An element's chunk depends on its place, the buffer's length and R alone, so both give the same bits.
//
// Numbers. All ranks count slices alike, from 1. Slice s uses half s % 2 of the areas, so slot (area, half)
// of a peer is filled again at s + 2. Who fills it must know that the peer has read what it held. A flag of
// number t from that peer says so for all collectives before the one that t belongs to: a rank begins a
// collective when it has finished the last one. Inside a collective of many slices each algorithm says what
// else a flag proves
// (`proven`). Where nothing proves it - roots that push to ranks which have nothing to answer - the peer's
// `done` flag does, which every rank raises after each collective.
//
// Loss. Every wait polls the region's epoch; once raised, collectives return at once and false, results
// garbage.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ops.h"
#include "ring/peer_memory.h"
#include "ring/pusher.h"
#include "ring/socket_links.h"

namespace fastserve {

// What is reduced how.
struct Reduction {
    DataType type;
    ReduceOp op;
    bool average;

    int64_t element_bytes() const { return static_cast<int64_t>(size_of(type)); }
};

// Used by one thread at a time; every rank calls the same collectives in the same order with equal sizes. All
// return false once the epoch was raised.
class Collectives {
  public:
    // The rank must have its slot in the region (an Exchange). links: to the ranks of other hosts; null:
    // there are none.
    Collectives(std::shared_ptr<PeerMemory> memory, int rank, std::shared_ptr<SocketLinks> links = nullptr);
    Collectives(const Collectives&) = delete;
    Collectives& operator=(const Collectives&) = delete;

    int rank() const { return rank_; }
    int size() const { return size_; }
    PeerMemory& memory() const { return *memory_; }
    void set_interrupted(bool (*interrupted)());

    // data [count], in place.
    bool all_reduce(void* data, int64_t count, const Reduction& reduction);
    // The same of buffers in the heaps, at the same offset (bytes, a multiple of 64) on every rank; one host
    // only. Two-shot without copies: rank c reads chunk c where it lies, and writes the sum where it belongs.
    bool all_reduce_symmetric(int64_t offset, int64_t count, const Reduction& reduction);
    // data [count]; the result is root's, the others' data stays.
    bool reduce(void* data, int64_t count, const Reduction& reduction, int root);
    // in [R][count], out [count]: chunk r of the sum. `out` may lie in `in` at this rank's place.
    bool reduce_scatter(const void* const* in, void* out, int64_t count, const Reduction& reduction);
    // in [bytes], out [R][bytes].
    bool all_gather(const void* in, void* const* out, int64_t bytes);
    bool gather(const void* in, void* const* out, int64_t bytes, int root);
    bool scatter(const void* const* in, void* out, int64_t bytes, int root);
    bool broadcast(void* data, int64_t bytes, int root);
    // in[r] [in_bytes[r]] goes to rank r, out[r] [out_bytes[r]] comes from it.
    bool all_to_all(const void* const* in, const int64_t* in_bytes, void* const* out,
                    const int64_t* out_bytes);
    // The same where no part is longer than `longest`, which all ranks must agree on.
    bool all_to_all_up_to(int64_t longest, const void* const* in, const int64_t* in_bytes, void* const* out,
                          const int64_t* out_bytes);
    bool barrier();

  private:
    struct Span {
        int64_t begin, end;  // elements of a slice
        int64_t size() const { return end - begin; }
    };
    Span chunk(int64_t count, int c) const;
    int64_t slice_elements(int64_t element_bytes) const;  // of one slot
    bool goes_in_one_shot(int64_t bytes) const;

    bool all_reduce_one_shot(uint8_t* data, int64_t count, const Reduction& reduction);
    bool all_reduce_two_shot(uint8_t* data, int64_t count, const Reduction& reduction);
    // Of chunk c of `mine`, with what has arrived from the others at `offset` of their slots; into all
    // `outs`.
    void reduce_chunk(const uint8_t* mine, int64_t count, int c, int64_t offset, const Reduction& reduction,
                      std::span<void* const> outs, uint64_t number) const;
    void reduce_chunk(uint8_t* mine, int64_t count, int c, int64_t offset, const Reduction& reduction,
                      uint64_t number) const {
        void* const out = mine;
        reduce_chunk(mine, count, c, offset, reduction, {&out, 1}, number);
    }
    // What root sends everyone (data_of) or everyone sends root, slice by slice.
    template <class DataOf>
    bool from_root(int64_t bytes, int root, const DataOf& data_of, void* out);
    template <class Take>
    bool to_root(const void* data, int64_t bytes, int64_t slice_bytes, int root, const Take& take);

    void begin() { before_ = number_; }
    bool end();
    // To ranks of other hosts, before this one sleeps: they may wait for that. Else it goes with the next
    // push.
    void tell_done();
    bool is_remote(int rank) const { return links_ && links_->reaches(rank); }
    // Fills the slot and raises the flag; bytes 0 raises the flag alone.
    void push(Area area, int to, uint64_t number, const void* data, int64_t bytes);
    // The slot, once its reader is known to be done; of a rank on another host nothing may be written.
    uint8_t* fillable(Area area, int to, uint64_t number);
    void meet(Area area);  // all have come here
    void raise(Area area, int to, uint64_t number);
    void push_remote(Area area, int to, uint64_t number, const void* data, int64_t bytes);
    void wait(Area area, int from, uint64_t number);
    void wait_for(int publisher, Flag& flag, uint64_t number);
    const uint8_t* arrived(Area area, int from, uint64_t number) const {
        return memory_->slot(rank_, area, static_cast<int>(number % 2), from);
    }
    void proven(Area area, int rank, uint64_t number);
    int next(int rank) const { return rank + 1 < size_ ? rank + 1 : 0; }

    std::shared_ptr<PeerMemory> memory_;
    std::shared_ptr<SocketLinks> links_;
    int rank_, size_;
    bool crowded_;
    bool (*interrupted_)() = nullptr;
    bool lost_ = false;
    Pusher pusher_;
    uint64_t number_ = 0;  // of the last slice begun
    uint64_t before_ = 0;  // of the last slice of the last collective
    // [area][rank]: the last number of which it is known that the rank has read our slot; [area][rank][half]:
    // for which it was filled.
    std::vector<uint64_t> read_, filled_;
    uint64_t finished_ = 0;       // the last collective, by its last slice
    std::vector<uint64_t> told_;  // of that, each rank of another host
};

}  // namespace fastserve
