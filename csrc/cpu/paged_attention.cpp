// paged_attention: softmax(q . keys * scale) values over keys in KV blocks, with one running pass over the
// keys.
//
// Keys are split into *partitions* of 256 at absolute positions. In a partition a query's scores are computed
// (lane = key, 16 keys a block), then their maximum, exponentials and sum, and the weighted sum of the
// values; partitions are merged from left to right into (highest, sum, values). What a query computes depends
// on its own position and window alone: rows, threads, tiles and the place of blocks change how loads are
// shared, never an operation or its order.
//
// Sharing. A *tile* is up to 8 consecutive rows of one slot. Query heads that read one KV head are worked on
// together with the tile's rows: up to 32 queries go through a partition while it lies in L2 (256 keys x 64 x
// 4 bytes = 64 KB of keys), up to 4 of them while a vector lies in a register. Threads divide (tile, query
// head) by the keys they see, so one decode row is spread over all threads by heads, and prefill by its
// causal cost.
//
// Memory beyond a query's keys may hold anything (stale, or later tokens, or NaN): scores there are computed
// lane by lane and replaced by -inf before they meet another lane; values there are not multiplied, not even
// by 0.
#include "cpu/paged_attention.h"

#include "cpu/kernels.h"
#include "cpu/matmul_operand.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

constexpr int32_t kTileRows = 8;
constexpr int64_t kRowCost = 32;  // a row's fixed cost, in keys

// Float is the element of a cache of floats: float, or uint16_t for bfloat16. Codes are multiplied in
// paged_attention_int8.cpp.

void load_query(const float* q, int32_t e, Operand<float>* to) {
    __builtin_memcpy(to->q, q, sizeof(float) * static_cast<size_t>(e));
}
void load_query(const float* q, int32_t e, Operand<uint16_t>* to) {
    for (int32_t i = 0; i < e; i += kLanes)
        round_stored(to->q + i, i + kLanes <= e ? load(q + i) : load_n(q + i, e - i));
}

// What one multiplication adds to a lane: of scores so many dimensions, of values so many keys. Pairs of bf16
// lie in one lane.
template <class Float>
constexpr int32_t kStep = sizeof(float) / sizeof(Float);

FASTSERVE_INLINE Vec dot_step(Vec sum, const float* q, const float* k) {
    return fma(splat(*q), load(k), sum);
}
FASTSERVE_INLINE Vec dot_step(Vec sum, const uint16_t* q, const uint16_t* k) {
    return dot_bf16(sum, broadcast4(q), load(k));
}
// 16 dimensions of a step's keys. Of a bf16 key that a query doesn't see, kNoValues are read.
alignas(64) constexpr uint16_t kNoValues[kMaxHeadDim] = {};

FASTSERVE_INLINE Vec load_values(const float* v, int32_t, bool, bool, int32_t d) {
    return load(v + d);
}
FASTSERVE_INLINE VecI load_values(const uint16_t* v, int32_t e, bool has_first, bool has_second, int32_t d) {
    return load_pairs((has_first ? v : kNoValues) + d, (has_second ? v + e : kNoValues) + d);
}
FASTSERVE_INLINE Vec value_step(Vec sum, const float* weight, Vec values) {
    return fma(splat(*weight), values, sum);
}
FASTSERVE_INLINE Vec value_step(Vec sum, const uint16_t* weights, VecI values) {
    return dot_bf16(sum, broadcast4(weights), values);
}
FASTSERVE_INLINE Vec load_value_tail(const float* v, int32_t, bool, bool, int32_t d, int32_t n) {
    return load_n(v + d, n);
}
FASTSERVE_INLINE VecI load_value_tail(const uint16_t* v, int32_t e, bool has_first, bool has_second,
                                      int32_t d, int32_t n) {
    uint16_t first[kLanes] = {}, second[kLanes] = {};
    for (int32_t i = 0; i < n; ++i) {
        if (has_first) first[i] = v[d + i];
        if (has_second) second[i] = v[e + d + i];
    }
    return load_pairs(first, second);
}

// Stores e^x of 16 keys, and returns it as it is multiplied: rounded to the cache's element.
FASTSERVE_INLINE Vec store_weights(float* to, Vec x) {
    const Vec weights = exp(x);
    store(to, weights);
    return weights;
}
FASTSERVE_INLINE Vec store_weights(uint16_t* to, Vec x) {
    return round_stored(to, exp_weight(x));
}

// scores[j][16 b ..] of `kBlocks` blocks from b on, and into tops[j] the highest of each lane: each lane sums
// its dimensions in ascending order.
template <int kQueries, int kBlocks, class Float>
void score_blocks(const Float* const* q, const Float* const* k, int32_t e, float scale,
                  float (*scores)[kPartitionSize], Vec* tops, int32_t b, Ahead* ahead) {
    Vec sums[kQueries][kBlocks];
    const uint8_t* next[kBlocks];
    if constexpr (kFetchesAhead<kQueries>)
        for (int n = 0; n < kBlocks; ++n) next[n] = ahead->take(e / kStep<Float> * kLineBytes);
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < kBlocks; ++n) sums[j][n] = zero();
    for (int32_t i = 0; i < e; i += kStep<Float>) {
        if constexpr (kFetchesAhead<kQueries>)
#pragma GCC unroll 8
            for (int n = 0; n < kBlocks; ++n) prefetch(next[n] + i / kStep<Float> * kLineBytes);
#pragma GCC unroll 8
        for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
            for (int n = 0; n < kBlocks; ++n)
                sums[j][n] = dot_step(sums[j][n], q[j] + i, k[b + n] + i * kBlockSize);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j) {
        Vec top = tops[j];
#pragma GCC unroll 8
        for (int n = 0; n < kBlocks; ++n) {
            const Vec score = mul(sums[j][n], splat(scale));
            store(scores[j] + (b + n) * kBlockSize, score);
            top = max(score, top);
        }
        tops[j] = top;
    }
}

// Of the seen scores of a partition e^(score - highest), rounded as values are multiplied with it, and their
// sum; lanes outside become e^-87 or 0: no sum notices, and no value is multiplied with them.
template <class Float>
float exponentials(const float* scores, Span seen, float highest, Float* weights) {
    Vec sum = zero();
    for (int32_t b = seen.begin / kBlockSize; b * kBlockSize < seen.end; ++b) {
        const Vec x = sub(load(scores + b * kBlockSize), splat(highest));
        sum = add(sum, store_weights(weights + b * kBlockSize, x));
    }
    return reduce_add(sum);
}

// values[j][d ..] += weights[j][key] * v[key][d ..] over keys [begin, end), in ascending order of steps;
// kVecs vectors wide. Several queries share whole steps alone.
template <bool kFetches, int kQueries, int kVecs, class Float>
void add_values(const Float (*weights)[kPartitionSize], const Float* const* v, int32_t begin, int32_t end,
                int32_t e, int32_t d, float (*values)[kMaxHeadDim], Ahead* ahead) {
    Vec sums[kQueries][kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < kVecs; ++n) sums[j][n] = load(values[j] + d + n * kLanes);
    for (int32_t key = begin / kStep<Float> * kStep<Float>; key < end; key += kStep<Float>) {
        const Float* row = v[key / kBlockSize] + key % kBlockSize * e;
        const bool has_first = kQueries > 1 || key >= begin, has_second = kQueries > 1 || key + 1 < end;
        if constexpr (kFetches) {
            const uint8_t* const next = ahead->take(kVecs * kLineBytes);
#pragma GCC unroll 8
            for (int n = 0; n < kVecs; ++n) prefetch(next + n * kLineBytes);
        }
        decltype(load_values(row, e, true, true, d)) steps[kVecs];  // at hand: fewer than the weights
#pragma GCC unroll 8
        for (int n = 0; n < kVecs; ++n) steps[n] = load_values(row, e, has_first, has_second, d + n * kLanes);
#pragma GCC unroll 8
        for (int j = 0; j < kQueries; ++j) {
#pragma GCC unroll 8
            for (int n = 0; n < kVecs; ++n) sums[j][n] = value_step(sums[j][n], weights[j] + key, steps[n]);
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < kVecs; ++n) store(values[j] + d + n * kLanes, sums[j][n]);
}

// The last e % 16 dimensions.
template <class Float>
void add_value_tail(const Float* weights, const Float* const* v, int32_t begin, int32_t end, int32_t e,
                    float* values) {
    const int32_t n = e % kLanes, d = e - n;
    Vec sum = load(values + d);
    for (int32_t key = begin / kStep<Float> * kStep<Float>; key < end; key += kStep<Float>) {
        const Float* row = v[key / kBlockSize] + key % kBlockSize * e;
        sum = value_step(sum, weights + key, load_value_tail(row, e, key >= begin, key + 1 < end, d, n));
    }
    store(values + d, sum);
}

template <bool kFetches, int kQueries, class Float>
void add_all_values(const Float (*weights)[kPartitionSize], const Float* const* v, int32_t begin, int32_t end,
                    int32_t e, float (*values)[kMaxHeadDim], Ahead* ahead) {
    if (begin >= end) return;
    constexpr int32_t kVecs = accumulators_per_query<Vec>(kQueries);
    int32_t d = 0;
    for (; d + kVecs * kLanes <= e; d += kVecs * kLanes)
        add_values<kFetches, kQueries, kVecs>(weights, v, begin, end, e, d, values, ahead);
    for (; d + kLanes <= e; d += kLanes)
        add_values<kFetches, kQueries, 1>(weights, v, begin, end, e, d, values, ahead);
    if (d == e) return;
    for (int j = 0; j < kQueries; ++j) add_value_tail(weights[j], v, begin, end, e, values[j]);
}

// kQueries queries, all of which see keys of the partition.
template <int kQueries, class Float>
[[gnu::noinline]] void attend_together(const Partition<Float>& partition, int32_t e, float scale,
                                       Pass<Float>* pass, const int32_t* idx, Ahead* ahead) {
    alignas(64) float scores[kQueries][kPartitionSize];
    alignas(64) Float weights[kQueries][kPartitionSize];
    alignas(64) float parts[kQueries][kMaxHeadDim];
    const Views<kQueries> seen(partition, *pass, idx);
    const Float* q[kQueries];
    for (int j = 0; j < kQueries; ++j) {
        q[j] = pass->operands[idx[j]].q;
        for (int32_t d = 0; d < e; d += kLanes) store(parts[j] + d, zero());
    }
    constexpr int32_t kBlocks = accumulators_per_query<Vec>(kQueries);
    const int32_t end_block = (seen.any.end + kBlockSize - 1) / kBlockSize;
    int32_t b = seen.any.begin / kBlockSize;
    Tops<kQueries> tops(seen.all);
    for (; b + kBlocks <= end_block; b += kBlocks)
        score_blocks<kQueries, kBlocks>(q, partition.k, e, scale, scores, tops.of(b, kBlocks), b, ahead);
    for (; b < end_block; ++b)
        score_blocks<kQueries, 1>(q, partition.k, e, scale, scores, tops.of(b, 1), b, ahead);
    float highest[kQueries], sums[kQueries];
    for (int j = 0; j < kQueries; ++j) highest[j] = tops.mask_scores(scores[j], seen.each[j], j);
    for (int j = 0; j < kQueries; ++j)
        sums[j] = exponentials(scores[j], seen.each[j], highest[j], weights[j]);
    // Each query's keys in ascending order: its own before those that all see, these together, its own
    // behind, cut between steps.
    int32_t all_begin = (seen.all.begin + kStep<Float> - 1) / kStep<Float> * kStep<Float>;
    int32_t all_end = seen.all.end / kStep<Float> * kStep<Float>;
    if (all_begin > all_end) all_begin = all_end = kPartitionSize;
    for (int j = 0; j < kQueries; ++j) {
        const auto [begin, end] = seen.each[j];
        add_all_values<false, 1>(weights + j, partition.v, begin, end < all_begin ? end : all_begin, e,
                                 parts + j, ahead);
    }
    add_all_values<kFetchesAhead<kQueries>, kQueries>(weights, partition.v, all_begin, all_end, e, parts,
                                                      ahead);
    for (int j = 0; j < kQueries; ++j) {
        add_all_values<false, 1>(weights + j, partition.v, all_end, seen.each[j].end, e, parts + j, ahead);
        merge(&pass->queries[idx[j]], pass->values[idx[j]], highest[j], sums[j], parts[j], e);
    }
}

template <class Float>
void attend(const Partition<Float>& partition, int32_t e, float scale, Pass<Float>* pass, const int32_t* idx,
            int32_t num, Ahead* ahead) {
    for_num_queries(
        num, [&]<int kQueries>() { attend_together<kQueries>(partition, e, scale, pass, idx, ahead); });
}

int32_t first_key(const PagedAttentionArgs& args, int64_t t) {
    const int32_t begin = args.index.positions[t] - args.window + 1;
    return args.window > 0 && begin > 0 ? begin : 0;
}

// Query heads [head_begin, head_end) of rows [begin, end) of one slot: of many rows, heads of one KV head.
struct Tile {
    int64_t begin, end;
    int32_t head_begin, head_end;
};

const int32_t* table_of(const PagedAttentionArgs& args, const Tile& tile) {
    return args.index.tables + int64_t{args.index.row_slot[tile.begin]} * args.index.max_blocks;
}

// The keys that a tile's rows see.
Span keys_of(const PagedAttentionArgs& args, const Tile& tile) {
    Span keys = {first_key(args, tile.begin), args.index.positions[tile.begin] + 1};
    for (int64_t t = tile.begin + 1; t < tile.end; ++t) {
        const int32_t begin = first_key(args, t), end = args.index.positions[t] + 1;
        keys = {begin < keys.begin ? begin : keys.begin, end > keys.end ? end : keys.end};
    }
    return keys;
}

// The blocks of a partition that hold some of the keys.
Span blocks_of(Span keys, int32_t partition) {
    const int32_t begin = keys.begin > partition ? keys.begin : partition;
    const int32_t end = keys.end < partition + kPartitionSize ? keys.end : partition + kPartitionSize;
    return {begin / kBlockSize, (end + kBlockSize - 1) / kBlockSize};
}

// What one row's heads read of a partition is to be fetched: keys, if they are wanted, and values.
void add_partition(const PagedAttentionArgs& args, const Tile& tile, int32_t partition, bool keys,
                   Ahead* ahead) {
    if (tile.end - tile.begin > 1) return;  // many queries meet a key: it is there before they are done
    int32_t kv_begin = args.cache.num_kv_heads, kv_end = 0;
    for (int32_t h = tile.head_begin; h < tile.head_end; ++h) {
        const int32_t kv_head = args.kv_of_head[h];
        kv_begin = kv_head < kv_begin ? kv_head : kv_begin;
        kv_end = kv_head < kv_end ? kv_end : kv_head + 1;
    }
    const Span blocks = blocks_of(keys_of(args, tile), partition);
    const auto add = [&](const void* cache, int64_t block_bytes) {
        ahead->add(static_cast<const uint8_t*>(cache) + kv_begin * block_bytes, table_of(args, tile),
                   blocks.begin, blocks.end, args.cache.num_kv_heads * block_bytes,
                   (kv_end - kv_begin) * block_bytes);
    };
    if (keys) add(args.cache.k, key_block_bytes(args.cache.type, args.cache.head_dim));
    add(args.cache.v, value_block_bytes(args.cache.type, args.cache.head_dim));
}

template <class Element>
void load_queries(const PagedAttentionArgs& args, const Tile& tile, Pass<Element>* pass) {
    const int32_t e = args.cache.head_dim;
    for (int64_t t = tile.begin; t < tile.end; ++t) {
        for (int32_t d = tile.head_begin * e; d < tile.head_end * e; d += kLanes) {
            prefetch(args.q + t * args.ldq + d);
            if (args.out) prefetch(args.out + t * args.ldo + d);
        }
    }
    pass->num_queries = 0;
    for (int64_t t = tile.begin; t < tile.end; ++t) {
        for (int32_t head = tile.head_begin; head < tile.head_end; ++head) {
            load_query(args.q + t * args.ldq + head * e, e, &pass->operands[pass->num_queries]);
            pass->queries[pass->num_queries++] = {
                first_key(args, t), args.index.positions[t] + 1, t, head, 0.0f, 0.0f};
        }
    }
}

template <class Element>
const Element* block_at(const void* cache, int64_t offset_bytes) {
    return reinterpret_cast<const Element*>(static_cast<const uint8_t*>(cache) + offset_bytes);
}

// Takes the keys of the partition that begins at `begin` up into the pass, one KV head after the other.
template <class Element>
void attend_partition(const PagedAttentionArgs& args, const Tile& tile, int32_t begin, Pass<Element>* pass,
                      Ahead* ahead) {
    const int32_t e = args.cache.head_dim;
    const int32_t* const table = table_of(args, tile);
    const Span blocks = blocks_of(keys_of(args, tile), begin);
    const int64_t k_bytes = key_block_bytes(args.cache.type, e),
                  v_bytes = value_block_bytes(args.cache.type, e);
    Partition<Element> partition;
    partition.begin = begin;
    for (int32_t i = 0; i < pass->num_queries;) {
        const int32_t kv_head = args.kv_of_head[pass->queries[i].head];
        for (int32_t b = blocks.begin; b < blocks.end; ++b) {
            const int64_t block = int64_t{table[b]} * args.cache.num_kv_heads + kv_head;
            partition.k[b - begin / kBlockSize] = block_at<Element>(args.cache.k, block * k_bytes);
            partition.v[b - begin / kBlockSize] = block_at<Element>(args.cache.v, block * v_bytes);
        }
        int32_t idx[kMaxQueries], num = 0;
        for (; i < pass->num_queries && args.kv_of_head[pass->queries[i].head] == kv_head; ++i)
            if (pass->queries[i].begin < begin + kPartitionSize && pass->queries[i].end > begin)
                idx[num++] = i;
        for (int32_t j = 0; j < num; j += kRegisterQueries)
            attend(partition, e, args.scale, pass, idx + j,
                   num - j < kRegisterQueries ? num - j : kRegisterQueries, ahead);
    }
}

void write_out(const PagedAttentionArgs& args, const Query& query, float* values) {
    const int32_t e = args.cache.head_dim;
    float* const out = args.out ? args.out + query.row * args.ldo + query.head * e : values;
    for (int32_t d = 0; d < e; d += kLanes)
        store_n(out + d, div(load(values + d), splat(query.sum)), e - d < kLanes ? e - d : kLanes);
    OperandWriter(args.operand, args.rows, args.num_heads * e)
        .write(query.row, query.head * e, (query.head + 1) * e, out);
}

// Rows [begin, end) of one slot: up to kTileRows.
int64_t end_of_tile(const PagedAttentionArgs& args, int64_t begin) {
    int64_t end = begin + 1;
    while (end < args.rows && end - begin < kTileRows &&
           args.index.row_slot[end] == args.index.row_slot[begin])
        ++end;
    return end;
}

// A thread's share of (tile, query head), by the keys that they see.
class Tiles {
  public:
    Tiles(const PagedAttentionArgs& args, const Worker& worker) : args_(args) {
        int64_t total = 0;
        for (int64_t t = 0; t < args.rows; ++t) total += row_cost(t) * args.num_heads;
        cost_begin_ = total * worker.thread_idx / worker.num_threads;
        cost_end_ = total * (worker.thread_idx + 1) / worker.num_threads;
    }

    // The next part of the share that one pass has room for, or false.
    bool next(Tile* part) {
        while (whole_.head_begin >= whole_.head_end) {
            if (whole_.end == args_.rows) return false;
            turn_to_rows(whole_.end);
        }
        const auto rows = static_cast<int32_t>(whole_.end - whole_.begin);
        const int32_t first = whole_.head_begin;
        int32_t h = first;
        while (h < whole_.head_end && (h + 1 - first) * rows <= kMaxQueries &&
               (rows == 1 || args_.kv_of_head[h] == args_.kv_of_head[first]))
            ++h;
        *part = {whole_.begin, whole_.end, first, h};
        whole_.head_begin = h;
        return true;
    }

  private:
    int64_t row_cost(int64_t t) const {
        return kRowCost + args_.index.positions[t] + 1 - first_key(args_, t);
    }

    void turn_to_rows(int64_t begin) {
        whole_ = {begin, end_of_tile(args_, begin), args_.num_heads, 0};
        int64_t head_cost = 0;
        for (int64_t t = begin; t < whole_.end; ++t) head_cost += row_cost(t);
        for (int32_t h = 0; h < args_.num_heads; ++h, cost_ += head_cost) {
            const int64_t middle =
                cost_ + head_cost / 2;  // a head belongs to the thread in whose share its middle lies
            if (middle < cost_begin_ || middle >= cost_end_) continue;
            whole_.head_begin = h < whole_.head_begin ? h : whole_.head_begin;
            whole_.head_end = h + 1;
        }
    }

    const PagedAttentionArgs& args_;
    int64_t cost_begin_, cost_end_, cost_ = 0;
    Tile whole_ = {0, 0, 0, 0};
};

template <class Element>
void attend_share(const PagedAttentionArgs& args, const Worker& worker) {
    Tiles tiles(args, worker);
    Tile tile, next;
    bool is_first = true;
    for (bool more = tiles.next(&tile); more; tile = next, is_first = false) {
        more = tiles.next(&next);
        Pass<Element> pass;
        load_queries(args, tile, &pass);
        const Span keys = keys_of(args, tile);
        const int32_t first = keys.begin / kPartitionSize * kPartitionSize;
        for (int32_t p = first; p < keys.end; p += kPartitionSize) {
            Ahead ahead(args.q);
            if (is_first && p == first) add_partition(args, tile, p, false, &ahead);
            if (p + kPartitionSize < keys.end)
                add_partition(args, tile, p + kPartitionSize, true, &ahead);
            else if (more)
                add_partition(args, next, keys_of(args, next).begin / kPartitionSize * kPartitionSize, true,
                              &ahead);
            attend_partition(args, tile, p, &pass, &ahead);
        }
        for (int32_t i = 0; i < pass.num_queries; ++i) write_out(args, pass.queries[i], pass.values[i]);
    }
}

}  // namespace

void merge(Query* query, float* values, float highest, float sum, const float* part, int32_t e) {
    if (query->sum == 0.0f) {  // the first partition
        query->highest = highest;
        query->sum = sum;
        for (int32_t d = 0; d < e; d += kLanes) store(values + d, load(part + d));
        return;
    }
    const float top = highest > query->highest ? highest : query->highest;
    const Vec keep = exp(splat(query->highest - top)), gain = exp(splat(highest - top));
    query->highest = top;
    query->sum = reduce_max(fma(splat(sum), gain, mul(splat(query->sum), keep)));  // all lanes are equal
    for (int32_t d = 0; d < e; d += kLanes)
        store(values + d, fma(load(part + d), gain, mul(load(values + d), keep)));
}

void paged_attention(const PagedAttentionArgs& args, const Worker& worker) {
    switch (args.cache.type) {
        case KvType::f32:
            return attend_share<float>(args, worker);
        case KvType::bf16:
            return attend_share<uint16_t>(args, worker);
        case KvType::int8:
            return attend_share<uint8_t>(args, worker);
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
