// How far two cores are from each other, which a virtual machine does not tell and may change at any time.
#pragma once

#include <optional>

namespace fastserve {

// Nanoseconds that a cache line takes one way between two pinned threads: the median over batches of
// ping-pongs, `ping_pongs` of them in all. Nothing if the threads could not be pinned.
std::optional<double> measure_one_way_ns(int core_a, int core_b, int ping_pongs);

}  // namespace fastserve
