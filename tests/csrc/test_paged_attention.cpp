// paged_attention on every ISA: equals softmax(q k) v in double; the same bits for any rows, threads, tiles
// and places of blocks; memory beyond a query's keys never shows.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <tuple>

#include "on_isas.h"
#include "program/kv_type.h"

using namespace fastserve;

namespace {

struct Case {
    int32_t e, num_heads, num_kv_heads, window;
    KvType type;
    int32_t num_slots = 2, length = 600;  // keys per slot
};

// x [e] as a Hadamard matrix mixes it, whose size is the largest power of two in e.
std::vector<double> mixed(const std::vector<double>& x) {
    const size_t n = x.size() & (~x.size() + 1);
    std::vector<double> out(x.size());
    for (size_t i = 0; i < x.size(); ++i)
        for (size_t j = 0; j < n; ++j)
            out[i] += (__builtin_popcountll(i % n & j) % 2 != 0 ? -1 : 1) * x[i / n * n + j];
    return out;
}

// What a cache keeps of rows of keys or values, [..., e].
std::vector<double> kept(const Case& c, const Floats& x, bool are_keys) {
    std::vector<double> out(x.begin(), x.end());
    if (c.type == KvType::bf16) std::transform(x.begin(), x.end(), out.begin(), rounded_to_bf16);
    if (c.type != KvType::int8) return out;
    const auto e = static_cast<size_t>(c.e);
    for (size_t begin = 0; begin < x.size(); begin += e) {
        const auto at = out.begin() + static_cast<std::ptrdiff_t>(begin);
        std::vector<double> row(at, at + c.e);
        if (are_keys) row = mixed(row);
        double largest = 0;
        for (const double value : row) largest = std::max(largest, std::fabs(value));
        const double scale = rounded_to_bf16(static_cast<float>(largest / 127));
        for (double& value : row) value = scale * std::nearbyint(value / scale);
        if (are_keys) row = mixed(row);
        const double times = are_keys ? static_cast<double>(e & (~e + 1)) : 1;
        std::transform(row.begin(), row.end(), at, [&](double value) { return value / times; });
    }
    return out;
}

// Keys and values of all slots, [slot][position][kv head][e], and caches that hold them in some order of
// blocks.
class Cache {
  public:
    // Blocks are laid out from `first_block` on, forwards or backwards; what is not a key is NaN. Keys from
    // `stored` on are left out. `spoilt` is a position whose keys or values are all `value`.
    Cache(const Case& c, int32_t stored, bool backwards, int32_t spoilt = -1, bool in_values = false,
          float value = 0)
        : case_(c), max_blocks_((c.length + 15) / 16) {
        const size_t elements =
            static_cast<size_t>(c.num_slots) * static_cast<size_t>(c.length * c.num_kv_heads * c.e);
        keys = random_floats(elements, 11);
        values = random_floats(elements, 12);
        if (spoilt >= 0) {
            const auto row = (in_values ? values : keys).begin() + spoilt * c.num_kv_heads * c.e;
            std::fill(row, row + c.num_kv_heads * c.e, value);
        }
        num_blocks_ = c.num_slots * max_blocks_;
        const int64_t num_head_blocks = num_blocks_ * c.num_kv_heads;
        // NaN, in int8 the scales.
        k_bytes_.assign(static_cast<size_t>(num_head_blocks * key_block_bytes(c.type, c.e)), 0xff);
        v_bytes_.assign(static_cast<size_t>(num_head_blocks * value_block_bytes(c.type, c.e)), 0xff);
        for (int32_t i = 0; i < num_blocks_; ++i) tables_.push_back(backwards ? num_blocks_ - 1 - i : i);
        Ints slots, positions;
        for (int32_t slot = 0; slot < c.num_slots; ++slot)
            for (int32_t p = 0; p < c.length; ++p) slots.push_back(slot), positions.push_back(p);
        for (int32_t slot = 0; slot < c.num_slots; ++slot) {
            const int32_t row = c.num_kv_heads * c.e;
            const size_t from = static_cast<size_t>(slot * c.length);
            const KvIndex index{&slots[from], &positions[from], tables_.data(), max_blocks_};
            const StoreKvArgs args{&keys[from * static_cast<size_t>(row)],
                                   row,
                                   &values[from * static_cast<size_t>(row)],
                                   row,
                                   cache(),
                                   index,
                                   stored};
            run_op(isas().back().table->store_kv, args, 1);
        }
    }
    KvCache cache() {
        return {k_bytes_.data(), v_bytes_.data(), case_.type, num_blocks_, case_.num_kv_heads, case_.e};
    }
    KvIndex index(const Ints& slots, const Ints& positions) const {
        return {slots.data(), positions.data(), tables_.data(), max_blocks_};
    }

    Floats keys, values;

  private:
    Case case_;
    int32_t max_blocks_, num_blocks_ = 0;
    std::vector<uint8_t> k_bytes_, v_bytes_;
    Ints tables_;
};

Ints kv_heads(const Case& c) {
    Ints map;
    for (int32_t h = 0; h < c.num_heads; ++h) map.push_back(h * c.num_kv_heads / c.num_heads);
    return map;
}

// q of a row depends on its slot and position alone.
Floats queries(const Case& c, const Ints& slots, const Ints& positions) {
    Floats q;
    for (size_t t = 0; t < slots.size(); ++t) {
        const Floats row = random_floats(static_cast<size_t>(c.num_heads * c.e),
                                         static_cast<uint32_t>(1000 * slots[t] + positions[t]), 2.0f);
        q.insert(q.end(), row.begin(), row.end());
    }
    return q;
}

Floats parts_of(const Case& c) {
    const int32_t max_blocks = (c.length + kBlockSize - 1) / kBlockSize;
    return Floats(static_cast<size_t>(attention_parts_bytes(c.num_heads, c.e, max_blocks)) / sizeof(float));
}

// parts null: long rows too are shared by query heads.
Floats attend(const OpTable& ops, const Case& c, Cache& cache, const Ints& slots, const Ints& positions,
              int threads, Floats* parts) {
    const Floats q = queries(c, slots, positions);
    const Ints map = kv_heads(c);
    Floats out(q.size());
    const int32_t ld = c.num_heads * c.e;
    PagedAttentionArgs args{q.data(),
                            ld,
                            cache.cache(),
                            cache.index(slots, positions),
                            map.data(),
                            static_cast<int32_t>(slots.size()),
                            c.num_heads,
                            1.0f / std::sqrt(static_cast<float>(c.e)),
                            c.window,
                            out.data(),
                            ld};
    args.parts = parts ? parts->data() : nullptr;
    run_op(ops.paged_attention, args, threads);
    return out;
}
Floats attend(const OpTable& ops, const Case& c, Cache& cache, const Ints& slots, const Ints& positions,
              int threads) {
    Floats parts = parts_of(c);
    return attend(ops, c, cache, slots, positions, threads, &parts);
}

std::vector<double> expected(const Case& c, const Cache& cache, const Ints& slots, const Ints& positions) {
    const Floats queried = queries(c, slots, positions);
    std::vector<double> q(queried.begin(), queried.end());
    if (c.type == KvType::bf16) q = kept(c, queried, false);
    const std::vector<double> keys = kept(c, cache.keys, true), values = kept(c, cache.values, false);
    const Ints map = kv_heads(c);
    std::vector<double> out(q.size());
    const double scale = static_cast<double>(1.0f / std::sqrt(static_cast<float>(c.e)));
    for (size_t t = 0; t < slots.size(); ++t)
        for (int32_t h = 0; h < c.num_heads; ++h) {
            const size_t at =
                (t * static_cast<size_t>(c.num_heads) + static_cast<size_t>(h)) * static_cast<size_t>(c.e);
            const auto row = [&](int32_t p) {
                return static_cast<size_t>(
                    ((slots[t] * c.length + p) * c.num_kv_heads + map[static_cast<size_t>(h)]) * c.e);
            };
            const int32_t begin = c.window > 0 ? std::max(0, positions[t] - c.window + 1) : 0;
            double highest = -INFINITY, sum = 0;
            std::vector<double> scores;
            for (int32_t p = begin; p <= positions[t]; ++p) {
                double score = 0;
                for (int32_t i = 0; i < c.e; ++i)
                    score += q[at + static_cast<size_t>(i)] * keys[row(p) + static_cast<size_t>(i)];
                scores.push_back(score * scale);
                highest = std::max(highest, scores.back());
            }
            for (int32_t p = begin; p <= positions[t]; ++p) {
                const double weight = std::exp(scores[static_cast<size_t>(p - begin)] - highest);
                sum += weight;
                for (int32_t i = 0; i < c.e; ++i)
                    out[at + static_cast<size_t>(i)] += weight * values[row(p) + static_cast<size_t>(i)];
            }
            for (int32_t i = 0; i < c.e; ++i) out[at + static_cast<size_t>(i)] /= sum;
        }
    return out;
}

std::vector<Case> cases() {
    return {{64, 9, 3, 0, KvType::f32},    {64, 9, 3, 0, KvType::bf16},  {64, 5, 2, 100, KvType::bf16},
            {64, 4, 4, 300, KvType::f32},  {6, 2, 1, 0, KvType::f32},    {34, 3, 1, 37, KvType::bf16},
            {256, 2, 1, 0, KvType::f32},   {80, 40, 1, 0, KvType::bf16}, {64, 9, 3, 0, KvType::int8},
            {64, 5, 2, 100, KvType::int8}, {36, 3, 1, 37, KvType::int8}, {256, 2, 1, 0, KvType::int8},
            {80, 40, 1, 0, KvType::int8},  {4, 2, 1, 300, KvType::int8}};
}

double limit(KvType type) {
    switch (type) {
        case KvType::f32:
            return 3e-5;
        case KvType::bf16:
            return 1e-2;  // weights are bf16 too
        default:
            return 2e-3;  // queries and weights of 14 bits
    }
}

void equals_softmax_in_double(const OpTable& ops) {
    for (const Case& c : cases()) {
        Cache cache(c, c.length, false);
        const Ints slots = {0, 0, 0, 1, 1, 1, 1, 1}, positions = {0, 15, 16, 254, 255, 256, 511, 599};
        const Floats out = attend(ops, c, cache, slots, positions, 2);
        CHECK(worst_error(out, expected(c, cache, slots, positions), 0.1) < limit(c.type));
    }
}

// A decode row, alone on one thread, is the twin of the same row in a prefill, a batch, other threads and
// blocks.
void same_bits_whatever_shares_the_step(const OpTable& ops) {
    for (const Case& c : cases()) {
        Cache forwards(c, c.length, false), backwards(c, c.length, true);
        Ints slots, positions;
        for (int32_t p = 0; p < 43; ++p) slots.push_back(0), positions.push_back(p);
        for (int32_t p = 240; p < 275; ++p) slots.push_back(1), positions.push_back(p);
        slots.insert(slots.end(), {0, 1, 0, 0});
        positions.insert(positions.end(), {599, 3, 512, 90});
        const Floats all = attend(ops, c, forwards, slots, positions, 1);
        CHECK(all == attend(ops, c, forwards, slots, positions, 2));
        CHECK(all == attend(ops, c, backwards, slots, positions, 3));
        const size_t width = static_cast<size_t>(c.num_heads * c.e);
        for (size_t t = 0; t < slots.size(); t += 5) {
            const Floats alone =
                attend(ops, c, backwards, {slots[t]}, {positions[t]}, 1 + static_cast<int>(t % 3));
            CHECK(std::memcmp(alone.data(), &all[t * width], width * sizeof(float)) == 0);
        }
    }
}

// Fewer rows than threads: these share their partitions, where there are enough, and 1300 keys are 6.
void threads_share_the_partitions_of_a_long_row(const OpTable& ops) {
    for (const auto& [heads, kv, window, type] :
         std::vector<std::tuple<int32_t, int32_t, int32_t, KvType>>{{9, 3, 0, KvType::f32},
                                                                    {9, 3, 900, KvType::bf16},
                                                                    {70, 2, 0, KvType::bf16},
                                                                    {5, 1, 0, KvType::int8}}) {
        const Case c{64, heads, kv, window, type, 2, 1300};
        Cache cache(c, c.length, true);
        for (const auto& [slots, positions] :
             std::vector<std::pair<Ints, Ints>>{{{1}, {1299}}, {{0}, {1024}}, {{1, 0}, {700, 517}}}) {
            const Floats alone = attend(ops, c, cache, slots, positions, 1, nullptr);
            for (int threads = 2; threads <= 4; ++threads) {
                const auto rows = static_cast<int>(slots.size());
                Floats parts = parts_of(c);
                CHECK(alone == attend(ops, c, cache, slots, positions, threads, &parts));
                const bool is_shared =
                    std::any_of(parts.begin(), parts.end(), [](float x) { return x != 0; });
                if (threads <= rows || threads == 4) CHECK(!is_shared);
                if (threads == 2 && rows == 1) CHECK(is_shared);
            }
        }
    }
}

void keys_beyond_the_position_never_show(const OpTable& ops) {
    for (const Case& c : cases()) {
        for (const int32_t position : {0, 20, 255, 300}) {
            Cache whole(c, c.length, false), cut(c, position + 1, false);
            const Floats with_later_keys = attend(ops, c, whole, {1}, {position}, 1);
            CHECK(with_later_keys == attend(ops, c, cut, {1}, {position}, 1));
            // In a tile with rows that see garbage, the rows that do not are what they were.
            const Floats tile = attend(ops, c, cut, {1, 1, 1}, {position, position + 1, position + 40}, 1);
            CHECK(std::memcmp(tile.data(), with_later_keys.data(), with_later_keys.size() * sizeof(float)) ==
                  0);
        }
    }
}

// The last `tokens` of the `context` tokens of each slot over SmolLM2's heads, a layer after the other: 1 is
// a step of decode, all are a prefill.
int bench(int argc, char** argv) {
    constexpr int32_t kHeads = 9, kKvHeads = 3, kE = 64, kLayers = 30;
    const int32_t context = std::atoi(argv[2]);
    const KvType type = find_kv_type(argv[3]);
    const OpTable& ops = argc > 4 ? find_isa(argv[4]) : op_table();
    Team team(std::vector<int>(argc > 5 ? std::strtoul(argv[5], nullptr, 10) : 1, -1));
    const int32_t num_slots = argc > 6 ? std::atoi(argv[6]) : 1, tokens = argc > 7 ? std::atoi(argv[7]) : 1;
    const int32_t rows = num_slots * tokens;
    const Case c{kE, kHeads, kKvHeads, 0, type, num_slots, context};
    std::vector<Cache> layers;
    for (int32_t i = 0; i < kLayers; ++i) layers.emplace_back(c, context, false);
    const Ints map = kv_heads(c);
    Ints slots, positions;
    for (int32_t i = 0; i < rows; ++i)
        slots.push_back(i / tokens), positions.push_back(context - tokens + i % tokens);
    const Floats q = queries(c, slots, positions);
    Floats out(q.size()), parts = parts_of(c);
    std::vector<double> seconds;
    for (double total = 0; total < 1.0 || seconds.size() < 3;) {
        const auto start = std::chrono::steady_clock::now();
        for (Cache& layer : layers) {
            PagedAttentionArgs args{q.data(),   kHeads * kE, layer.cache(), layer.index(slots, positions),
                                    map.data(), rows,        kHeads,        0.125f,
                                    0,          out.data(),  kHeads * kE};
            args.parts = parts.data();
            team.run([&](const Worker& worker) { ops.paged_attention(args, worker); });
        }
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        total += seconds.back();
    }
    std::sort(seconds.begin(), seconds.end());
    std::printf("%s %s context %d slots %d tokens %d threads %d: median %.2f us a layer, best %.2f us\n",
                ops.isa, argv[3], context, num_slots, tokens, team.size(),
                seconds[seconds.size() / 2] / kLayers * 1e6, seconds.front() / kLayers * 1e6);
    return 0;
}

// The scales of int8 are all that can tell; in floats a NaN goes through by itself.
void a_key_that_is_not_finite_shows_where_it_is_seen(const OpTable& ops) {
    Case c{64, 9, 3, 0, KvType::int8};
    for (const float value : {NAN, INFINITY}) {
        for (const bool in_values : {false, true}) {
            Cache clean(c, c.length, false), spoilt(c, c.length, false, 300, in_values, value);
            for (const int32_t position : {299, 300, 599}) {
                const Floats out = attend(ops, c, spoilt, {0}, {position}, 2);
                if (position < 300)
                    CHECK(out == attend(ops, c, clean, {0}, {position}, 2));
                else
                    CHECK(std::all_of(out.begin(), out.end(), [](float x) { return std::isnan(x); }));
            }
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 3 && std::string(argv[1]) == "--bench") return bench(argc, argv);
    for_each_isa(equals_softmax_in_double);
    for_each_isa(same_bits_whatever_shares_the_step);
    for_each_isa(threads_share_the_partitions_of_a_long_row);
    for_each_isa(keys_beyond_the_position_never_show);
    for_each_isa(a_key_that_is_not_finite_shows_where_it_is_seen);
    return failures() != 0;
}
