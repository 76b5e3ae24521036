// How a rank waits for a flag of another: spin, then yield, then sleep; always with an eye on the epoch.
//
// A segment that a running peer is about to publish comes within a microsecond or two, and waking from a
// sleep costs 14 us: so spin first. Longer means that the peer has not got a core, or computes something
// larger: yield. After a millisecond nobody gains by our burning a core: sleep on the flag, a futex. A
// publisher wakes sleepers as far as it sees them without a fence; the sleep's time limit covers the rest,
// and the epoch.
#pragma once

#include <cstdint>

#include "ring/shared_region.h"

namespace fastserve {

struct Waiting {
    SharedRegion& region;
    RankSlot& waiter;       // of the rank that waits: its sleeps are beats
    bool crowded;           // more threads than cores: whoever spins keeps the peer from running
    bool (*interrupted)();  // may be null; asked while sleeping; true gives up
};

// Waits until `flag`, which the rank of `publisher` publishes, reaches `value`. False, with the epoch raised,
// when it was given up: the epoch was raised, the rank has left, or the wait was interrupted. What has been
// published is seen even then.
bool wait_for_flag(const Waiting& waiting, RankSlot& publisher, Flag& flag, uint64_t value);

// Makes `flag` reach `value` and wakes those who sleep on it; `publisher` is the caller's slot.
void publish_flag(RankSlot& publisher, Flag& flag, uint64_t value);

}  // namespace fastserve
