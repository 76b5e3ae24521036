#include "ring/pusher.h"

#include <algorithm>
#include <chrono>

#include "ops.h"

namespace fastserve {

namespace {

constexpr int64_t kStreamBytes = 4 * 1024;
constexpr int64_t kProbeBytes = 16 * 1024;
constexpr int64_t kMinProbeBytes = 8 * 1024;  // less disappears in the store buffer
constexpr uint32_t kProbePeriod = 16;
constexpr double kPlainBytesPerNs = 4.5;

}  // namespace

bool Pusher::probes(int64_t bytes) {
    return bytes >= kMinProbeBytes && num_pushes_.fetch_add(1, std::memory_order_relaxed) % kProbePeriod == 0;
}

void Pusher::push(void* to, const void* from, int64_t bytes) {
    if (bytes < kStreamBytes) return copy(to, from, bytes, false);
    if (probes(bytes)) return measure(to, from, bytes);
    copy(to, from, bytes, streams());
}

void Pusher::measure(void* to, const void* from, int64_t bytes) {
    using Clock = std::chrono::steady_clock;
    const int64_t probed = std::min(bytes, kProbeBytes);
    const auto start = Clock::now();
    copy(to, from, probed, false);
    const std::chrono::duration<double, std::nano> elapsed = Clock::now() - start;
    streams_.store(static_cast<double>(probed) < kPlainBytesPerNs * elapsed.count(),
                   std::memory_order_relaxed);
    copy(static_cast<uint8_t*>(to) + probed, static_cast<const uint8_t*>(from) + probed, bytes - probed,
         streams());
}

void Pusher::copy(void* to, const void* from, int64_t bytes, bool streams) {
    op_table().copy({.to = to, .from = from, .bytes = bytes, .stream_bytes = streams ? 0 : INT64_MAX});
}

}  // namespace fastserve
