// All-reduce of a group that spans hosts with equally many ranks each, so that every byte crosses the network
// once each way, however many ranks a host has.
//
// Chunk c of the buffer is summed over the ranks of a host by that host's c-th rank (reduce-scatter, shared
// memory), then over the c-th ranks of all hosts (all-reduce, sockets), and handed out on the host again
// (all-gather). So the order of an element's sum depends on its place, the buffer's length, the hosts and the
// ranks of a host alone, and all ranks end with the same bits. 16-bit floats are rounded once on the host and
// once across.
#pragma once

#include <cstdint>
#include <memory>

#include "ring/collectives.h"
#include "ring/compressed_all_reduce.h"

namespace fastserve {

class Hierarchy {
  public:
    // whole: all ranks; local: those of this host; across: those with this one's place on every host.
    // compressed: of the same ranks as across; null: all goes in full.
    Hierarchy(Collectives& whole, Collectives& local, Collectives& across,
              CompressedAllReduce* compressed = nullptr)
        : whole_(whole), local_(local), across_(across), compressed_(compressed) {}

    // Whether the levels are worth it; else the whole group's own all-reduce is the faster one.
    bool takes(int64_t count, const Reduction& reduction) const;
    // As Collectives::all_reduce; the same calls on all ranks.
    bool all_reduce(void* data, int64_t count, const Reduction& reduction);

  private:
    static constexpr int64_t kMinBytes = 64 * 1024;  // below, three collectives in a row take longer than one
    Collectives &whole_, &local_, &across_;
    CompressedAllReduce* compressed_;
};

}  // namespace fastserve
