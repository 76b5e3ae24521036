#include "benchmark/roofs.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <new>
#include <stdexcept>
#include <thread>

#include "cpu/peak.h"
#include "cpu/threads.h"
#include "ops.h"

namespace fastserve {

namespace portable {
extern const PeakLoops peak_loops;
}
#if FASTSERVE_HAS_avx2
namespace avx2 {
extern const PeakLoops peak_loops;
}
#endif
#if FASTSERVE_HAS_avx512
namespace avx512 {
extern const PeakLoops peak_loops;
}
#endif
#if FASTSERVE_HAS_neon
namespace neon {
extern const PeakLoops peak_loops;
}
namespace neon_bf16 {
extern const PeakLoops peak_loops;
}
#endif

namespace {

using Clock = std::chrono::steady_clock;

struct alignas(128) Sink {
    float value = 0.0f;
};

const PeakLoops& loops() {
    const std::string isa = op_table().isa;
#if FASTSERVE_HAS_avx512
    if (isa == "avx512") return avx512::peak_loops;
#endif
#if FASTSERVE_HAS_avx2
    if (isa == "avx2") return avx2::peak_loops;
#endif
#if FASTSERVE_HAS_neon
    if (isa == "neon_bf16") return neon_bf16::peak_loops;
    if (isa == "neon") return neon::peak_loops;
#endif
    return portable::peak_loops;
}

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Anonymous memory on huge pages where the kernel gives them: a roof is not to be a roof of page walks.
class Buffer {
  public:
    explicit Buffer(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
        data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data_ == MAP_FAILED) throw std::bad_alloc();
        madvise(data_, bytes_, MADV_HUGEPAGE);
    }
    ~Buffer() { munmap(data_, bytes_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    uint8_t* data() { return static_cast<uint8_t*>(data_); }

  private:
    size_t bytes_;
    void* data_;
};

// Runs `work` on a team whose thread 0 is a thread of its own: the caller's affinity stays as it is.
void on_team(const std::vector<int>& cores, const std::function<void(const Worker&)>& work) {
    if (cores.empty()) throw std::invalid_argument("cores must name at least one core, got []");
    std::thread([&] {
        pin_current_thread(cores[0]);
        Team team(cores);
        team.run(work);
    }).join();
}

// Seconds from the moment when all threads have come to the moment when all are done; of use on thread 0.
double timed(const Worker& worker, const std::function<void()>& work) {
    team_barrier(worker);
    const Clock::time_point start = Clock::now();
    work();
    team_barrier(worker);
    return seconds_since(start);
}

void check_rounds(int rounds) {
    if (rounds < 1) throw std::invalid_argument("rounds must be >= 1, got " + std::to_string(rounds));
}

}  // namespace

std::vector<double> measure_read(const std::vector<int>& cores, int64_t bytes, int rounds) {
    check_rounds(rounds);
    const int64_t num_threads = static_cast<int64_t>(cores.size());
    const int64_t part = num_threads ? bytes / num_threads / kReadStep * kReadStep : kReadStep;
    if (part < kReadStep)
        throw std::invalid_argument("bytes must be >= " + std::to_string(kReadStep) + " per core, got " +
                                    std::to_string(bytes));
    Buffer buffer(part * std::max<int64_t>(num_threads, 1));
    std::vector<double> rates;
    on_team(cores, [&](const Worker& worker) {
        const PeakLoops& peak = loops();
        Sink sink;
        uint8_t* mine = buffer.data() + worker.thread_idx * part;
        std::fill(mine, mine + part, uint8_t{1});
        for (int round = 0; round < rounds; ++round) {
            const double seconds = timed(worker, [&] { peak.read(mine, part, &sink.value); });
            if (worker.thread_idx == 0)
                rates.push_back(static_cast<double>(part * worker.num_threads) / seconds / 1e9);
        }
    });
    return rates;
}

std::vector<double> measure_peak(const std::string& kind, const std::vector<int>& cores, int64_t round_us,
                                 int rounds) {
    check_rounds(rounds);
    const PeakLoops& peak = loops();
    const auto loop = kind == "f32"    ? peak.f32
                      : kind == "bf16" ? peak.bf16
                      : kind == "int8" ? peak.int8
                                       : nullptr;
    if (!loop) throw std::invalid_argument("kind must be f32, bf16 or int8, got " + kind);
    constexpr int64_t kProbeIterations = 10'000;
    std::vector<double> rates;
    int64_t iterations = 0;
    on_team(cores, [&](const Worker& worker) {
        Sink sink;
        if (worker.thread_idx == 0) {
            const Clock::time_point start = Clock::now();
            loop(kProbeIterations, &sink.value);
            const double probe_us = std::max(seconds_since(start) * 1e6, 1e-3);
            iterations = std::max<int64_t>(1, static_cast<int64_t>(kProbeIterations * round_us / probe_us));
        }
        for (int round = 0; round < rounds; ++round) {
            int64_t operations = 0;
            const double seconds = timed(worker, [&] { operations = loop(iterations, &sink.value); });
            if (worker.thread_idx == 0)
                rates.push_back(static_cast<double>(operations * worker.num_threads) / seconds / 1e9);
        }
    });
    return rates;
}

}  // namespace fastserve
