// Collectives give the bits that exchange.h promises: any ranks, threads, sizes and algorithms, back to back.
#include <cstring>
#include <vector>

#include "check.h"
#include "ranks.h"
#include "ring/segments.h"

using namespace fastserve;

namespace {

constexpr size_t kHalfBytes = 64 * 1024;  // small: the larger matrices go in several slices

struct Shape {
    int32_t rows, d;
};
const Shape kShapes[] = {{1, 576}, {1, 16}, {3, 100}, {5, 1}, {48, 576}, {7, 4096}, {2, 9000}};

// Values whose sum depends on the order of the additions.
float value(int rank, int salt, int64_t i) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(rank * 97 + salt) * 40503u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    return (static_cast<float>(h & 0xffff) - 32768.0f) / static_cast<float>(1 + (h >> 16 & 0x3ff));
}

std::vector<float> matrix(int rank, int salt, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = value(rank, salt, i);
    return values;
}

// The slow twin: chunk c from rank c + 1 to rank c.
std::vector<float> summed(const std::vector<std::vector<float>>& partials, Shape shape) {
    const int num_ranks = static_cast<int>(partials.size());
    const Segments segments(shape.d, num_ranks, 1, 1);
    std::vector<float> total(partials[0].size());
    for (int32_t chunk = 0; chunk < num_ranks; ++chunk)
        for (int32_t row = 0; row < shape.rows; ++row)
            for (int32_t column = segments.chunk_begin(chunk) * kPanel;
                 column < segments.chunk_begin(chunk + 1) * kPanel && column < shape.d; ++column) {
                const size_t at =
                    static_cast<size_t>(row) * static_cast<size_t>(shape.d) + static_cast<size_t>(column);
                float sum = partials[static_cast<size_t>((chunk + 1) % num_ranks)][at];
                for (int hop = 2; hop <= num_ranks; ++hop)
                    sum += partials[static_cast<size_t>((chunk + hop) % num_ranks)][at];
                total[at] = sum;
            }
    return total;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

int threads_of(int rank) {
    return 1 + rank % 3;
}

void check_all_reduce(Exchange& exchange, Team& team, Shape shape, int salt) {
    const int64_t count = static_cast<int64_t>(shape.rows) * shape.d;
    std::vector<std::vector<float>> partials;
    for (int rank = 0; rank < exchange.size(); ++rank) partials.push_back(matrix(rank, salt, count));
    std::vector<float> x = partials[static_cast<size_t>(exchange.rank())];
    const AllReduceArgs args{x.data(), shape.d, shape.rows, shape.d, &exchange};
    team.run([&](const Worker& worker) { op_table().all_reduce(args, worker); });
    CHECK(same_bits(x, summed(partials, shape)));
}

// y = x w^T with f32 weights; a rank's K differs from the others'.
struct Linear {
    Linear(int rank, int salt, Shape shape) : n(shape.d), k(5 + 3 * rank), rows(shape.rows) {
        x = matrix(rank, salt, static_cast<int64_t>(rows) * k);
        const int32_t panels = (n + kPanel - 1) / kPanel;
        weights.reset(
            static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(panels) * panel_bytes())));
        for (int64_t i = 0; i < static_cast<int64_t>(panels) * k * kPanel; ++i) {
            const int64_t column = i / (k * kPanel) * kPanel + i % kPanel;
            weights.get()[i] = column < n ? value(rank, salt + 1, i) : 0.0f;
        }
        scratch.resize(static_cast<size_t>(matmul_scratch_bytes(WeightType::f32, rows, k)) + 64);
    }
    size_t panel_bytes() const { return static_cast<size_t>(k) * kPanel * sizeof(float); }
    MatmulArgs args(float* y) {
        const PackedWeight w{reinterpret_cast<const uint8_t*>(weights.get()), WeightType::f32, n, k,
                             static_cast<int64_t>(panel_bytes())};
        void* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
        return {x.data(), k, w, rows, y, n, aligned};
    }

    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };
    int32_t n, k, rows;
    std::vector<float> x;
    std::unique_ptr<float, Free> weights;
    std::vector<uint8_t> scratch;
};

void check_fused(Exchange& exchange, Team& team, Shape shape, int salt) {
    const size_t count = static_cast<size_t>(shape.rows) * static_cast<size_t>(shape.d);
    std::vector<std::vector<float>> partials;
    for (int rank = 0; rank < exchange.size(); ++rank) {
        Linear linear(rank, salt, shape);
        partials.emplace_back(count);
        const MatmulArgs args = linear.args(partials.back().data());
        team.run([&](const Worker& worker) { op_table().matmul(args, worker); });
    }
    Linear mine(exchange.rank(), salt, shape);
    std::vector<float> y(count);
    const MatmulAllReduceArgs args{mine.args(y.data()), &exchange};
    team.run([&](const Worker& worker) { op_table().matmul_all_reduce(args, worker); });
    CHECK(same_bits(y, summed(partials, shape)));
}

void check_all_gather(Exchange& exchange, Team& team, int salt) {
    const uint32_t mine = static_cast<uint32_t>(salt * 1000 + exchange.rank());
    team.run([&](const Worker& worker) {
        // Twice in one op: a fast peer may not overwrite what a slow thread still reads.
        for (const uint32_t added : {0u, 500u}) {
            const uint32_t part = mine + added;
            size_t stride = 0;
            const uint8_t* all =
                exchange.all_gather(worker.thread_idx == 0 ? &part : nullptr, sizeof part, &stride, worker);
            for (int rank = 0; rank < exchange.size(); ++rank) {
                uint32_t got;
                std::memcpy(&got, all + static_cast<size_t>(rank) * stride, sizeof got);
                CHECK(got == static_cast<uint32_t>(salt * 1000 + rank) + added);
            }
        }
    });
}

void test_collectives_in_any_mixture() {
    for (const int num_ranks : {1, 2, 3, 4, 5, 8}) {
        run_ranks(SharedRegion::create(num_ranks, kHalfBytes, 0, 3), [](Exchange& exchange) {
            Team team(unpinned(threads_of(exchange.rank())));
            int salt = 0;
            for (const int algorithm : {-1, 0, 1, 2}) {
                exchange.force_algorithm(algorithm);
                for (const Shape shape : kShapes) {
                    check_all_reduce(exchange, team, shape, ++salt);
                    check_fused(exchange, team, shape, ++salt);
                    check_all_gather(exchange, team, ++salt);
                }
            }
            team.run([&](const Worker& worker) { exchange.barrier(worker); });
            CHECK(!exchange.failed() && !exchange.gave_up());
        });
    }
}

void test_small_collectives_back_to_back() {
    run_ranks(SharedRegion::create(3, kHalfBytes, 0, 3), [](Exchange& exchange) {
        Team team(unpinned(1));
        for (int round = 0; round < 200; ++round) {
            exchange.force_algorithm(round % 3);
            check_all_reduce(exchange, team, {1, 48}, round);
        }
    });
}

void test_tiles_are_sent_before_the_last_is_computed() {
    for (const int algorithm : {0, 1, 2}) {
        run_ranks(SharedRegion::create(3, kHalfBytes, 0, 3), [=](Exchange& exchange) {
            exchange.force_algorithm(algorithm);
            Team team(unpinned(1));
            check_fused(exchange, team, {4, 576}, 1);
            // Of 18 tiles one-shot sends all but the last at once; two-shot those of two chunks, the ring at
            // least those of the chunk that starts here.
            const int at_once[] = {17, 12, 6};
            CHECK(exchange.tiles_sent_early() >= at_once[algorithm]);
            CHECK(exchange.tiles_sent_early() < 18);
        });
    }
}

void test_segments_cover_every_column_once() {
    for (int32_t num_ranks = 1; num_ranks <= kMaxRanks; ++num_ranks)
        for (const int32_t d : {1, 16, 100, 576, 4096, 49152})
            for (const auto& [rows, threads] : {std::pair(1, 1), std::pair(1, 8), std::pair(512, 3)}) {
                const Segments segments(d, num_ranks, rows, threads), other(d, num_ranks, 7, 2);
                CHECK(segments.count() <= kMaxSegments);
                std::vector<int> columns(static_cast<size_t>(d)), flags(kMaxSegments);
                for (int32_t i = 0; i < segments.count(); ++i) {
                    const Segment segment = segments.in_ring_order(num_ranks / 2, i);
                    ++flags[static_cast<size_t>(segment.idx)];
                    for (int32_t c = segment.column_begin; c < segment.column_end; ++c)
                        ++columns[static_cast<size_t>(c)];
                }
                for (const int times : columns) CHECK(times == 1);
                for (const int times : flags) CHECK(times <= 1);
                // The order of a sum depends on the chunk, which knows neither rows nor threads.
                for (int32_t chunk = 0; chunk <= num_ranks; ++chunk)
                    CHECK(segments.chunk_begin(chunk) == other.chunk_begin(chunk));
            }
}

void test_a_flag_is_for_what_is_worth_it() {
    CHECK(Segments(576, 2, 1, 1).count() == 2);   // a step's one row: a chunk each
    CHECK(Segments(576, 2, 1, 4).count() == 12);  // shared out among threads
    // So that the peer adds some while others are computed.
    CHECK(Segments(576, 2, 512, 1).count() == 10);
    CHECK(Segments(4096, 2, 512, 2).count() > 32);
}

void test_small_sums_go_in_one_shot() {
    CHECK(choose_all_reduce(576 * 4, 4) == AllReduceAlgorithm::one_shot);
    CHECK(choose_all_reduce(512 * 576 * 4, 4) == AllReduceAlgorithm::two_shot);
    CHECK(choose_all_reduce(512 * 576 * 4, 2) == AllReduceAlgorithm::two_shot);
}

}  // namespace

int main() {
    test_segments_cover_every_column_once();
    test_a_flag_is_for_what_is_worth_it();
    test_small_sums_go_in_one_shot();
    test_collectives_in_any_mixture();
    test_small_collectives_back_to_back();
    test_tiles_are_sent_before_the_last_is_computed();
    return failures() == 0 ? 0 : 1;
}
