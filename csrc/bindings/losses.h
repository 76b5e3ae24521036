// How waits of a ring end in Python: by Ctrl-C, or by a RankLostError.
#pragma once

#include "ring/shared_region.h"

namespace fastserve {

// A wait without end, for a peer that never comes, ends by Ctrl-C. Signals are for the main thread alone.
// Takes the GIL.
bool interrupted();

// Throws what says why the group has ended: RankLostError, or what a signal handler raised meanwhile.
[[noreturn]] void raise_loss(const SharedRegion& region);

}  // namespace fastserve
