// Collectives give what a loop over the ranks' buffers gives: any type, size, number of ranks and order of
// calls.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "network.h"
#include "ranks.h"
#include "ring/collectives.h"
#include "ring/hierarchy.h"
#include "ring/point_to_point.h"

using namespace fastserve;

namespace {

struct Peers {
    explicit Peers(Exchange& exchange, std::shared_ptr<SocketLinks> to_hosts = nullptr)
        : memory(std::make_shared<PeerMemory>(exchange.shared_region())),
          links(std::move(to_hosts)),
          collectives(memory, exchange.rank(), links),
          mail(memory, exchange.rank(), links) {}
    std::shared_ptr<PeerMemory> memory;
    std::shared_ptr<SocketLinks> links;
    Collectives collectives;
    PointToPoint mail;
};

using PeerBody = std::function<void(Peers&)>;

std::shared_ptr<SharedRegion> region_for(int num_ranks) {
    return SharedRegion::create(num_ranks, 1, PeerMemory::num_bytes(num_ranks));
}

// ranks_per_host: as many share memory, the others are reached over sockets.
void run_on_hosts(int num_ranks, int ranks_per_host, const PeerBody& body) {
    std::vector<int> host_of;
    Regions regions;
    for (int rank = 0; rank < num_ranks; ++rank) {
        host_of.push_back(rank / ranks_per_host);
        regions.push_back(rank % ranks_per_host == 0 ? region_for(num_ranks) : regions.back());
    }
    Network network(host_of);
    run_ranks(regions, [&](Exchange& exchange) {
        const int rank = exchange.rank();
        const auto memory = std::make_shared<PeerMemory>(exchange.shared_region());
        Peers peers(exchange, std::make_shared<SocketLinks>(memory, rank, network.connect(rank)));
        body(peers);
    });
}

// On one host, and with two ranks or one on each.
void run_peers(int num_ranks, const PeerBody& body) {
    run_ranks(region_for(num_ranks), [&](Exchange& exchange) {
        Peers peers(exchange);
        body(peers);
        CHECK(!exchange.failed());
    });
    for (const int ranks_per_host : {1, 2}) {
        if (num_ranks <= ranks_per_host || num_ranks > 5) continue;
        run_on_hosts(num_ranks, ranks_per_host, [&](Peers& peers) {
            body(peers);
            CHECK(!peers.memory->region().failed());
            if (peers.memory->region().failed()) std::puts(peers.memory->region().loss_text().c_str());
        });
    }
}

constexpr Reduction kSum{DataType::f32, ReduceOp::sum, false};

uint32_t hash(int rank, int salt, int64_t i) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(rank * 97 + salt) * 40503u;
    h ^= h >> 15;
    h *= 2246822519u;
    return h ^ h >> 13;
}

// Values whose sum depends on the order of the additions.
std::vector<float> floats(int rank, int salt, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t h = hash(rank, salt, i);
        values[static_cast<size_t>(i)] =
            (static_cast<float>(h & 0xffff) - 32768.0f) / static_cast<float>(1 + (h >> 16 & 0x3ff));
    }
    return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

bool is_sum(const std::vector<float>& got, int num_ranks, int salt) {
    std::vector<double> exact(got.size()), magnitude(got.size());
    for (int rank = 0; rank < num_ranks; ++rank) {
        const std::vector<float> part = floats(rank, salt, static_cast<int64_t>(got.size()));
        for (size_t i = 0; i < got.size(); ++i) {
            exact[i] += static_cast<double>(part[i]);
            magnitude[i] += std::fabs(static_cast<double>(part[i]));
        }
    }
    for (size_t i = 0; i < got.size(); ++i)
        if (std::fabs(static_cast<double>(got[i]) - exact[i]) > 1e-6 * magnitude[i]) return false;
    return true;
}

#if defined(__SANITIZE_THREAD__)
constexpr bool kIsSlow = true;  // twenty times as long
#else
constexpr bool kIsSlow = false;
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kRounds = 60;
#else
constexpr int kRounds = 400;
#endif

// Below and above one-shot's limit, below a slice, several slices, not a multiple of anything.
constexpr int64_t kCounts[] = {1, 7, 64, 1000, 2048, 5003, 70'001, 600'011};

// All ranks have these bits: rank 0's are sent round.
void check_everywhere(Peers& peers, const std::vector<float>& mine) {
    std::vector<float> first = mine;
    CHECK(peers.collectives.broadcast(first.data(), static_cast<int64_t>(first.size() * sizeof(float)), 0));
    CHECK(same_bits(first, mine));
}

void test_all_reduce_gives_all_ranks_the_same_sum() {
    for (const int num_ranks : {1, 2, 3, 4, 7, 16}) {
        if (kIsSlow && num_ranks != 2 && num_ranks != 3) continue;
        run_peers(num_ranks, [](Peers& peers) {
            Collectives& c = peers.collectives;
            for (const int64_t count : kCounts) {
                if ((kIsSlow || c.size() > 7) && count > 100'000) continue;
                const int salt = static_cast<int>(count % 101);
                std::vector<float> data = floats(c.rank(), salt, count);
                CHECK(c.all_reduce(data.data(), count, kSum));
                CHECK(is_sum(data, c.size(), salt));
                check_everywhere(peers, data);
                // reduce adds in the same order where the whole buffer is one slice
                std::vector<float> again = floats(c.rank(), salt, count);
                CHECK(c.reduce(again.data(), count, kSum, c.size() - 1));
                if (c.rank() == c.size() - 1) CHECK(is_sum(again, c.size(), salt));
            }
        });
    }
}

template <class T>
void check_integers(Collectives& c, DataType type) {
    for (const int64_t count : {int64_t{3}, int64_t{kIsSlow ? 5'003 : 200'003}}) {
        for (const ReduceOp op : {ReduceOp::sum, ReduceOp::product, ReduceOp::min, ReduceOp::max,
                                  ReduceOp::bit_and, ReduceOp::bit_or, ReduceOp::bit_xor}) {
            std::vector<T> data(static_cast<size_t>(count)), expected(static_cast<size_t>(count));
            for (int64_t i = 0; i < count; ++i) {
                for (int rank = 0; rank < c.size(); ++rank) {
                    const T x = static_cast<T>(hash(rank, static_cast<int>(op), i));
                    T& e = expected[static_cast<size_t>(i)];
                    if (rank == c.rank()) data[static_cast<size_t>(i)] = x;
                    const uint64_t a = static_cast<uint64_t>(e), b = static_cast<uint64_t>(x);
                    switch (rank == 0 ? ReduceOp::bit_or : op) {
                        case ReduceOp::sum:
                            e = static_cast<T>(a + b);
                            break;
                        case ReduceOp::product:
                            e = static_cast<T>(a * b);
                            break;
                        case ReduceOp::min:
                            e = std::min(e, x);
                            break;
                        case ReduceOp::max:
                            e = std::max(e, x);
                            break;
                        case ReduceOp::bit_and:
                            e = static_cast<T>(a & b);
                            break;
                        case ReduceOp::bit_or:
                            e = static_cast<T>(a | b);
                            break;
                        case ReduceOp::bit_xor:
                            e = static_cast<T>(a ^ b);
                            break;
                    }
                }
            }
            CHECK(c.all_reduce(data.data(), count, {type, op, false}));
            CHECK(data == expected);
        }
    }
}

void test_integers_of_every_size_and_op() {
    run_peers(3, [](Peers& peers) {
        check_integers<uint8_t>(peers.collectives, DataType::u8);
        check_integers<int8_t>(peers.collectives, DataType::s8);
        check_integers<int16_t>(peers.collectives, DataType::s16);
        check_integers<int32_t>(peers.collectives, DataType::s32);
        check_integers<int64_t>(peers.collectives, DataType::s64);
    });
}

void test_sixteen_bit_floats_are_rounded_once() {
    run_peers(4, [](Peers& peers) {
        // 256 + 3 * 0.5: in bf16 each half alone is lost against 256, all together are not.
        const uint16_t big = 0x4380, half = 0x3f00;
        std::vector<uint16_t> data(5000, peers.collectives.rank() == 0 ? big : half);
        CHECK(peers.collectives.all_reduce(data.data(), 5000, {DataType::bf16, ReduceOp::sum, false}));
        for (const uint16_t value : data) CHECK(value == 0x4381);  // 257.5 in fp32, rounded once to 258
    });
}

// Two ranks have a kernel of their own; three that add nothing show what it must give.
void test_pairs_of_bf16_are_added_as_any_number_is() {
    std::vector<uint16_t> sums[2];
    constexpr int64_t kCount = 3'001;
    for (const int num_ranks : {2, 3}) {
        const auto region = region_for(num_ranks);
        Regions regions(static_cast<size_t>(num_ranks), region);
        const auto shared = SharedRegion::create(1, 1, kCount * sizeof(uint16_t));
        run_ranks(regions, [&](Exchange& exchange) {
            Peers peers(exchange);
            std::vector<uint16_t> data(kCount, 0x8000);  // -0 adds nothing
            if (exchange.rank() < 2)
                for (int64_t i = 0; i < kCount; ++i)
                    data[static_cast<size_t>(i)] = static_cast<uint16_t>(hash(exchange.rank(), 11, i));
            CHECK(peers.collectives.all_reduce(data.data(), kCount, {DataType::bf16, ReduceOp::sum, false}));
            if (exchange.rank() == 0) std::memcpy(shared->extra(), data.data(), kCount * sizeof(uint16_t));
        });
        const auto* found = static_cast<const uint16_t*>(shared->extra());
        sums[num_ranks - 2].assign(found, found + kCount);
    }
    for (size_t i = 0; i < kCount; ++i) {
        const bool is_nan = (sums[1][i] & 0x7fff) > 0x7f80;
        CHECK(is_nan ? (sums[0][i] & 0x7fff) > 0x7f80 : sums[0][i] == sums[1][i]);
    }
}

void test_average_divides() {
    run_peers(3, [](Peers& peers) {
        std::vector<double> data(1000, 1.0 + peers.collectives.rank());
        CHECK(peers.collectives.all_reduce(data.data(), 1000, {DataType::f64, ReduceOp::sum, true}));
        for (const double value : data) CHECK(value == 2.0);
    });
}

std::vector<void*> rows(std::vector<float>& matrix, int num_rows) {
    std::vector<void*> pointers;
    for (int r = 0; r < num_rows; ++r)
        pointers.push_back(matrix.data() +
                           static_cast<size_t>(r) * (matrix.size() / static_cast<size_t>(num_rows)));
    return pointers;
}

void check_moves(Collectives& c, int64_t count, int salt) {
    const int64_t bytes = count * 4;
    const size_t total = static_cast<size_t>(count * c.size());
    const std::vector<float> mine = floats(c.rank(), salt, count);
    const int root = salt % c.size();

    std::vector<float> all(total), expected;
    for (int r = 0; r < c.size(); ++r) {
        const std::vector<float> part = floats(r, salt, count);
        expected.insert(expected.end(), part.begin(), part.end());
    }
    CHECK(c.all_gather(mine.data(), rows(all, c.size()).data(), bytes));
    CHECK(same_bits(all, expected));

    std::fill(all.begin(), all.end(), 0.0f);
    CHECK(c.gather(mine.data(), rows(all, c.size()).data(), bytes, root));
    if (c.rank() == root) CHECK(same_bits(all, expected));

    std::vector<float> one(static_cast<size_t>(count));
    CHECK(c.scatter(rows(expected, c.size()).data(), one.data(), bytes, root));
    CHECK(same_bits(one, mine));

    // Row r of the matrix of rank q goes to row q of that of rank r.
    std::vector<float> out(total), crossed, wanted;
    for (int r = 0; r < c.size(); ++r) {
        const std::vector<float> to = floats(c.rank() * 64 + r, salt, count),
                                 from = floats(r * 64 + c.rank(), salt, count);
        crossed.insert(crossed.end(), to.begin(), to.end());
        wanted.insert(wanted.end(), from.begin(), from.end());
    }
    const std::vector<int64_t> sizes(static_cast<size_t>(c.size()), bytes);
    CHECK(
        c.all_to_all(rows(crossed, c.size()).data(), sizes.data(), rows(out, c.size()).data(), sizes.data()));
    CHECK(same_bits(out, wanted));

    std::vector<float> summed(static_cast<size_t>(count)), parts = crossed;
    CHECK(c.reduce_scatter(rows(parts, c.size()).data(), summed.data(), count, kSum));
    for (size_t i = 0; i < summed.size(); ++i) {
        double exact = 0, magnitude = 0;
        for (int r = 0; r < c.size(); ++r) {
            const double x = static_cast<double>(wanted[static_cast<size_t>(r) * summed.size() + i]);
            exact += x;
            magnitude += std::fabs(x);
        }
        CHECK(std::fabs(static_cast<double>(summed[i]) - exact) <= 1e-6 * magnitude);
    }
}

void test_what_is_moved_arrives_where_it_should() {
    for (const int num_ranks : {1, 2, 3, 5}) {
        run_peers(num_ranks, [](Peers& peers) {
            int salt = 0;
            for (const int64_t count : {1, 1000, 150'000}) check_moves(peers.collectives, count, ++salt);
        });
    }
}

void test_uneven_parts_cross() {
    run_peers(3, [](Peers& peers) {
        Collectives& c = peers.collectives;
        std::vector<std::vector<uint8_t>> in, out;
        std::vector<const void*> from;
        std::vector<void*> to;
        std::vector<int64_t> in_bytes, out_bytes;
        const auto length = [](int sender, int receiver) { return int64_t{300'000} * sender + receiver; };
        for (int r = 0; r < c.size(); ++r) {
            in_bytes.push_back(length(c.rank(), r));
            out_bytes.push_back(length(r, c.rank()));
            in.emplace_back(static_cast<size_t>(in_bytes.back()), static_cast<uint8_t>(10 * c.rank() + r));
            out.emplace_back(static_cast<size_t>(out_bytes.back()));
        }
        for (int r = 0; r < c.size(); ++r) {
            from.push_back(in[static_cast<size_t>(r)].data());
            to.push_back(out[static_cast<size_t>(r)].data());
        }
        CHECK(c.all_to_all(from.data(), in_bytes.data(), to.data(), out_bytes.data()));
        for (int r = 0; r < c.size(); ++r)
            for (const uint8_t byte : out[static_cast<size_t>(r)]) CHECK(byte == 10 * r + c.rank());
    });
}

// Roots that run ahead, collectives that need no answer, one after the other without a barrier.
void test_any_mixture_back_to_back() {
    for (const int num_ranks : {2, 3, 4}) {
        if (kIsSlow && num_ranks == 4) continue;
        run_peers(num_ranks, [](Peers& peers) {
            Collectives& c = peers.collectives;
            uint32_t random = 1;
            for (int round = 0; round < kRounds; ++round) {
                random = random * 1664525u + 1013904223u;
                const int root = static_cast<int>(random >> 8) % c.size();
                const int64_t count = random >> 12 & 1 ? 40'000 + (random >> 20) : 1 + (random >> 24);
                std::vector<float> data = floats(c.rank(), round, count);
                switch (random >> 28) {
                    case 0:
                    case 1:
                    case 2:
                    case 3:
                        CHECK(c.all_reduce(data.data(), count, kSum));
                        CHECK(is_sum(data, c.size(), round));
                        break;
                    case 4:
                    case 5:
                    case 6:
                    case 7:
                        CHECK(c.broadcast(data.data(), count * 4, root));
                        CHECK(same_bits(data, floats(root, round, count)));
                        break;
                    case 8:
                    case 9:
                        CHECK(c.reduce(data.data(), count, kSum, root));
                        if (c.rank() == root) CHECK(is_sum(data, c.size(), round));
                        break;
                    case 10:
                        CHECK(c.barrier());
                        break;
                    default:
                        check_moves(c, count, round);
                }
            }
        });
    }
}

void test_messages_come_in_order_and_by_tag() {
    run_peers(3, [](Peers& peers) {
        PointToPoint& mail = peers.mail;
        const int rank = peers.collectives.rank();
        const int64_t long_count = 100'000;  // longer than the mail ring
        if (rank > 0) {
            for (int i = 0; i < 50; ++i) {
                const std::vector<float> data = floats(rank, i, 10 + i);
                CHECK(mail.send(0, i % 3, data.data(), static_cast<int64_t>(data.size() * 4)));
            }
            CHECK(mail.send(0, 9, floats(rank, 99, long_count).data(), long_count * 4));
        } else {
            for (const int tag : {2, 0, 1})
                for (int i = tag; i < 50; i += 3)
                    for (const int from : {1, 2}) {
                        std::vector<float> data(static_cast<size_t>(10 + i));
                        CHECK(mail.receive(from, tag, data.data(), static_cast<int64_t>(data.size() * 4)));
                        CHECK(same_bits(data, floats(from, i, 10 + i)));
                    }
            for (const int from : {2, 1}) {
                std::vector<float> data(static_cast<size_t>(long_count));
                CHECK(mail.receive(from, 9, data.data(), long_count * 4));
                CHECK(same_bits(data, floats(from, 99, long_count)));
                CHECK(!mail.has_mail(from));
            }
        }
        CHECK(peers.collectives.barrier());
    });
}

void test_a_message_of_another_length_is_refused() {
    run_peers(2, [](Peers& peers) {
        float data[4] = {1, 2, 3, 4};
        if (peers.collectives.rank() == 1) {
            CHECK(peers.mail.send(0, 5, data, 16));
        } else {
            bool refused = false;
            try {
                peers.mail.receive(1, 5, data, 8);
            } catch (const std::length_error& error) {
                refused = std::string(error.what()).find("8 bytes got a message of 16") != std::string::npos;
            }
            CHECK(refused);
        }
        CHECK(peers.collectives.barrier());
    });
}

void test_a_raised_epoch_ends_every_wait() {
    run_ranks(SharedRegion::create(2, 1, PeerMemory::num_bytes(2)), [](Exchange& exchange) {
        Peers peers(exchange);
        if (exchange.rank() == 0) {
            std::vector<float> data(100'000);
            CHECK(!peers.collectives.all_reduce(data.data(), 100'000, kSum));
            CHECK(!peers.collectives.broadcast(data.data(), 16, 1));
            CHECK(!peers.mail.receive(1, 0, data.data(), 4));
        } else {
            exchange.raise_epoch();
        }
    });
}

// Ranks 0, 1 on one host, 2, 3 on the other; the levels have regions and connections of their own.
void test_sums_in_levels() {
    const Regions whole = {region_for(4), nullptr, region_for(4), nullptr};
    const Regions local = {region_for(2), nullptr, region_for(2), nullptr};
    const auto of = [](const Regions& regions, int rank) {
        return regions[static_cast<size_t>(rank / 2 * 2)];
    };
    Network network({0, 0, 1, 1}), columns_0({0, 1}), columns_1({0, 1});
    run_ranks({whole[0], whole[0], whole[2], whole[2]}, [&](Exchange& exchange) {
        const int rank = exchange.rank(), place = rank % 2, host = rank / 2;
        Peers peers(exchange, std::make_shared<SocketLinks>(std::make_shared<PeerMemory>(of(whole, rank)),
                                                            rank, network.connect(rank)));
        Exchange local_exchange(of(local, rank), place), across_exchange(region_for(2), host);
        Peers beside(local_exchange);
        Network& columns = place == 0 ? columns_0 : columns_1;
        Peers across(across_exchange, std::make_shared<SocketLinks>(
                                          std::make_shared<PeerMemory>(across_exchange.shared_region()), host,
                                          columns.connect(host)));
        Hierarchy levels(peers.collectives, beside.collectives, across.collectives);
        for (const int64_t count : {16'384, 20'001, 300'003}) {
            CHECK(levels.takes(count, kSum));
            std::vector<float> data = floats(rank, 7, count);
            CHECK(levels.all_reduce(data.data(), count, kSum));
            CHECK(is_sum(data, 4, 7));
            check_everywhere(peers, data);
            std::vector<double> mean(static_cast<size_t>(count), 1.0 + rank);
            CHECK(levels.all_reduce(mean.data(), count, {DataType::f64, ReduceOp::sum, true}));
            for (const double value : mean) CHECK(value == 2.5);
        }
        CHECK(!levels.takes(100, kSum));
        CHECK(!levels.takes(1 << 20, {DataType::s32, ReduceOp::sum, true}));
    });
}

void test_symmetric_buffers_give_the_bits_of_private_ones() {
    for (const int num_ranks : {1, 2, 3, 5}) {
        if (kIsSlow && num_ranks > 3) continue;
        const size_t bytes = PeerMemory::num_bytes(num_ranks, 4 << 20);
        run_ranks(SharedRegion::create(num_ranks, 1, bytes), [](Exchange& exchange) {
            Peers peers(exchange);
            Collectives& c = peers.collectives;
            CHECK(peers.memory->heap_bytes() == 4 << 20);
            for (const int64_t count : kCounts) {
                for (const int64_t offset : {int64_t{0}, int64_t{640 * 1024}}) {
                    float* mine = reinterpret_cast<float*>(peers.memory->heap(c.rank()) + offset);
                    std::vector<float> private_copy = floats(c.rank(), 5, count);
                    std::copy(private_copy.begin(), private_copy.end(), mine);
                    CHECK(c.all_reduce(private_copy.data(), count, kSum));
                    CHECK(c.all_reduce_symmetric(offset, count, kSum));
                    // One slice there, several here: the chunks, and so the order, are those of the whole.
                    const std::vector<float> got(mine, mine + count);
                    CHECK(is_sum(got, c.size(), 5));
                    if (count <= 2048) CHECK(same_bits(got, private_copy));
                    check_everywhere(peers, got);
                }
            }
        });
    }
}

void test_sums_in_eight_bits_are_within_the_stated_error() {
    for (const int num_ranks : {1, 2, 3})
        run_peers(num_ranks, [](Peers& peers) {
            Collectives& c = peers.collectives;
            CompressedAllReduce compressed(c);
            for (const int64_t count : {64, 65, 5'000, 200'001}) {
                std::vector<float> data = floats(c.rank(), 3, count), exact(data.size()), bound(data.size());
                const auto add_error = [&](const std::vector<float>& part) {
                    for (size_t begin = 0; begin < part.size(); begin += 64) {
                        const size_t end = std::min(begin + 64, part.size());
                        float largest = 0;
                        for (size_t i = begin; i < end; ++i) largest = std::max(largest, std::fabs(part[i]));
                        for (size_t i = begin; i < end; ++i) bound[i] += largest / 254;
                    }
                };
                for (int rank = 0; rank < c.size(); ++rank) {
                    const std::vector<float> part = floats(rank, 3, count);
                    for (size_t i = 0; i < part.size(); ++i) exact[i] += part[i];
                    add_error(part);
                }
                add_error(exact);
                CHECK(compressed.all_reduce(data.data(), count));
                for (size_t i = 0; i < data.size(); ++i)
                    CHECK(std::fabs(data[i] - exact[i]) <= 1.02f * bound[i]);
                check_everywhere(peers, data);
            }
            std::vector<float> odd(128, 1.0f), tiny(128, 1e-44f);
            odd[5] = NAN;
            CHECK(compressed.all_reduce(odd.data(), 128));
            if (c.size() > 1)
                CHECK(std::isnan(odd[5]) && std::fabs(odd[100] - static_cast<float>(c.size())) < 0.1f);
            CHECK(compressed.all_reduce(tiny.data(), 128));
            CHECK(std::fabs(tiny[0]) <= 1e-43f);
        });
}

// The other end of rank 0's connections to rank 1.
struct Stranger {
    Stranger() {
        for (int* pair : {streams, mail, obituary}) CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    }
    static void writes(const int* pair, const Frame& frame) {
        CHECK(write(pair[1], &frame, sizeof frame) == sizeof frame);
    }
    SocketLinks::Connections of_rank_0() const { return {1, 1, {streams[0]}, mail[0], obituary[0]}; }
    void close_ends() const {
        for (const int* pair : {streams, mail, obituary}) close(pair[1]);
    }
    // Closes its ends while rank 0 waits for it; the region of the group that this ended.
    std::shared_ptr<SharedRegion> ends_group() {
        const auto region = region_for(2);
        const auto exchange = make_exchange(region, 0);
        Peers peers(*exchange, std::make_shared<SocketLinks>(std::make_shared<PeerMemory>(region), 0,
                                                             std::vector{of_rank_0()}));
        close_ends();
        std::vector<float> data(100);
        CHECK(!peers.collectives.all_reduce(data.data(), 100, kSum));
        return region;
    }

    int streams[2], mail[2], obituary[2];
};

// Whoever holds the other end of a connection cannot make a rank write where it should not.
void test_garbage_on_a_connection_ends_the_group() {
    const size_t slot = PeerMemory::slot_bytes(2);
    Frame no_frame{}, outside{}, far{};
    no_frame.magic = 0x1234;
    outside = {.magic = kFrameMagic,
               .kind = FrameKind::last,
               .area = 0,
               .bytes = 16,
               .number = 1,
               .done = 0,
               .offset = static_cast<uint32_t>(slot) - 8,
               .total = static_cast<uint32_t>(slot) + 8};
    far = {.magic = kFrameMagic,
           .kind = FrameKind::lost,
           .area = 0,
           .bytes = 0,
           .number = 0,
           .done = 0,
           .offset = 1u << 31,
           .total = 1};
    for (const Frame& frame : {no_frame, outside, far}) {
        Stranger stranger;
        stranger.writes(stranger.streams, frame);
        CHECK(stranger.ends_group()->loss() == Loss::garbled);
    }
    Stranger stranger;
    stranger.writes(stranger.obituary, far);
    CHECK(stranger.ends_group()->loss() == Loss::garbled);
}

// A rank that passes on another's death is not taken for the dead one.
void test_an_obituary_says_who_was_lost() {
    const auto of = [](Loss loss, uint32_t rank) {
        return Frame{.magic = kFrameMagic,
                     .kind = FrameKind::lost,
                     .area = 0,
                     .bytes = 0,
                     .number = 0,
                     .done = 0,
                     .offset = rank,
                     .total = static_cast<uint32_t>(loss)};
    };
    for (const uint32_t lost : {0u, 1u, kNobody}) {
        Stranger stranger;
        stranger.writes(stranger.obituary, of(Loss::interrupted, lost));
        const auto region = stranger.ends_group();
        CHECK(region->loss() == Loss::interrupted);
        CHECK(region->lost_rank() == (lost == kNobody ? -1 : static_cast<int>(lost)));
    }
    Stranger silent;
    CHECK(silent.ends_group()->loss() == Loss::died);
}

// However soon it leaves, perhaps before its links have seen the loss themselves.
void test_a_rank_that_leaves_for_a_loss_says_so() {
    Stranger stranger;
    const auto region = region_for(2);
    const auto exchange = make_exchange(region, 0);
    SocketLinks links(std::make_shared<PeerMemory>(region), 0, std::vector{stranger.of_rank_0()});
    region->raise_epoch(Loss::interrupted, getpid());
    links.leave();
    Frame frame{};
    CHECK(recv(stranger.obituary[1], &frame, sizeof frame, MSG_WAITALL) == sizeof frame);
    CHECK(frame.kind == FrameKind::lost && frame.offset == 0);
    CHECK(frame.total == static_cast<uint32_t>(Loss::interrupted));
    stranger.close_ends();
}

}  // namespace

int main() {
    test_sums_in_levels();
    test_symmetric_buffers_give_the_bits_of_private_ones();
    test_sums_in_eight_bits_are_within_the_stated_error();
    test_garbage_on_a_connection_ends_the_group();
    test_an_obituary_says_who_was_lost();
    test_a_rank_that_leaves_for_a_loss_says_so();
    test_all_reduce_gives_all_ranks_the_same_sum();
    test_integers_of_every_size_and_op();
    test_sixteen_bit_floats_are_rounded_once();
    test_pairs_of_bf16_are_added_as_any_number_is();
    test_average_divides();
    test_what_is_moved_arrives_where_it_should();
    test_uneven_parts_cross();
    test_any_mixture_back_to_back();
    test_messages_come_in_order_and_by_tag();
    test_a_message_of_another_length_is_refused();
    test_a_raised_epoch_ends_every_wait();
    return failures() == 0 ? 0 : 1;
}
