// What the machine allows: read bandwidth and arithmetic, measured with the ISA in use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastserve {

// 10^9 per second, of all threads together, one value per round. cores: one thread each, -1 = not pinned.
// Threads start each round together, and a round ends when the last of them is done.

// Bytes read: `bytes` in all, divided among the threads; each has touched its own part before.
std::vector<double> measure_read(const std::vector<int>& cores, int64_t bytes, int rounds);

// Operations of kind "f32", "bf16" or "int8"; each round lasts about `round_us`.
std::vector<double> measure_peak(const std::string& kind, const std::vector<int>& cores, int64_t round_us,
                                 int rounds);

}  // namespace fastserve
