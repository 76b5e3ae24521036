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
// Few queries wait for memory: a line of the blocks' values v is then fetched for each line of their keys.
template <int kQueries, int kBlocks, class Float>
void score_blocks(const Float* const* q, const Float* const* k, int32_t e, float scale,
                  float (*scores)[kPartitionSize], Vec* tops, int32_t b, const Float* const* v) {
    Vec sums[kQueries][kBlocks];
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < kBlocks; ++n) sums[j][n] = zero();
    for (int32_t i = 0; i < e; i += kStep<Float>) {
        if constexpr (kQueries <= 3)
#pragma GCC unroll 8
            for (int n = 0; n < kBlocks; ++n) prefetch(v[b + n] + i * kBlockSize);
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
template <int kQueries, int kVecs, class Float>
void add_values(const Float (*weights)[kPartitionSize], const Float* const* v, int32_t begin, int32_t end,
                int32_t e, int32_t d, float (*values)[kMaxHeadDim]) {
    Vec sums[kQueries][kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < kVecs; ++n) sums[j][n] = load(values[j] + d + n * kLanes);
    for (int32_t key = begin / kStep<Float> * kStep<Float>; key < end; key += kStep<Float>) {
        const Float* row = v[key / kBlockSize] + key % kBlockSize * e;
        const bool has_first = kQueries > 1 || key >= begin, has_second = kQueries > 1 || key + 1 < end;
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

template <int kQueries, class Float>
void add_all_values(const Float (*weights)[kPartitionSize], const Float* const* v, int32_t begin, int32_t end,
                    int32_t e, float (*values)[kMaxHeadDim]) {
    if (begin >= end) return;
    constexpr int32_t kVecs = accumulators_per_query<Vec>(kQueries);
    int32_t d = 0;
    for (; d + kVecs * kLanes <= e; d += kVecs * kLanes)
        add_values<kQueries, kVecs>(weights, v, begin, end, e, d, values);
    for (; d + kLanes <= e; d += kLanes) add_values<kQueries, 1>(weights, v, begin, end, e, d, values);
    if (d == e) return;
    for (int j = 0; j < kQueries; ++j) add_value_tail(weights[j], v, begin, end, e, values[j]);
}

// kQueries queries, all of which see keys of the partition.
template <int kQueries, class Float>
void attend_together(const Partition<Float>& partition, int32_t e, float scale, Pass<Float>* pass,
                     const int32_t* idx) {
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
        score_blocks<kQueries, kBlocks>(q, partition.k, e, scale, scores, tops.of(b, kBlocks), b,
                                        partition.v);
    for (; b < end_block; ++b)
        score_blocks<kQueries, 1>(q, partition.k, e, scale, scores, tops.of(b, 1), b, partition.v);
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
        add_all_values<1>(weights + j, partition.v, begin, end < all_begin ? end : all_begin, e, parts + j);
    }
    add_all_values<kQueries>(weights, partition.v, all_begin, all_end, e, parts);
    for (int j = 0; j < kQueries; ++j) {
        add_all_values<1>(weights + j, partition.v, all_end, seen.each[j].end, e, parts + j);
        merge(&pass->queries[idx[j]], pass->values[idx[j]], highest[j], sums[j], parts[j], e);
    }
}

template <class Float>
void attend(const Partition<Float>& partition, int32_t e, float scale, Pass<Float>* pass, const int32_t* idx,
            int32_t num) {
    for_num_queries(num, [&]<int kQueries>() { attend_together<kQueries>(partition, e, scale, pass, idx); });
}

template <class Element>
const Element* block_at(const void* cache, int64_t offset_bytes) {
    return reinterpret_cast<const Element*>(static_cast<const uint8_t*>(cache) + offset_bytes);
}

template <class Element>
void run_pass(const PagedAttentionArgs& args, int32_t slot, int32_t kv_head, Pass<Element>* pass) {
    const int32_t e = args.cache.head_dim;
    int32_t begin = pass->queries[0].begin, end = pass->queries[0].end;
    for (int32_t i = 1; i < pass->num_queries; ++i) {
        begin = pass->queries[i].begin < begin ? pass->queries[i].begin : begin;
        end = pass->queries[i].end > end ? pass->queries[i].end : end;
    }
    const int32_t* table = args.index.tables + static_cast<int64_t>(slot) * args.index.max_blocks;
    const int64_t k_bytes = key_block_bytes(args.cache.type, e),
                  v_bytes = value_block_bytes(args.cache.type, e);
    Partition<Element> partition;
    for (int32_t p = begin / kPartitionSize * kPartitionSize; p < end; p += kPartitionSize) {
        partition.begin = p;
        const int32_t first = (begin > p ? begin : p) / kBlockSize;
        for (int32_t b = first; b * kBlockSize < end && b < (p + kPartitionSize) / kBlockSize; ++b) {
            const int64_t block = static_cast<int64_t>(table[b]) * args.cache.num_kv_heads + kv_head;
            partition.k[b - p / kBlockSize] = block_at<Element>(args.cache.k, block * k_bytes);
            partition.v[b - p / kBlockSize] = block_at<Element>(args.cache.v, block * v_bytes);
        }
        int32_t idx[kMaxQueries], num = 0;
        for (int32_t i = 0; i < pass->num_queries; ++i)
            if (pass->queries[i].begin < p + kPartitionSize && pass->queries[i].end > p) idx[num++] = i;
        for (int32_t i = 0; i < num; i += kRegisterQueries)
            attend(partition, e, args.scale, pass, idx + i,
                   num - i < kRegisterQueries ? num - i : kRegisterQueries);
    }
    const OperandWriter operand(args.operand, args.rows, args.num_heads * e);
    for (int32_t i = 0; i < pass->num_queries; ++i) {
        const Query& query = pass->queries[i];
        float* const out = args.out ? args.out + query.row * args.ldo + query.head * e : pass->values[i];
        for (int32_t d = 0; d < e; d += kLanes)
            store_n(out + d, div(load(pass->values[i] + d), splat(query.sum)),
                    e - d < kLanes ? e - d : kLanes);
        operand.write(query.row, query.head * e, (query.head + 1) * e, out);
    }
}

int32_t first_key(const PagedAttentionArgs& args, int64_t t) {
    const int32_t begin = args.index.positions[t] - args.window + 1;
    return args.window > 0 && begin > 0 ? begin : 0;
}

// Query heads [head_begin, head_end) of rows [begin, end) of one slot.
template <class Element>
void attend_tile(const PagedAttentionArgs& args, int64_t begin, int64_t end, int32_t head_begin,
                 int32_t head_end) {
    Pass<Element> pass;
    const int32_t e = args.cache.head_dim;
    const int32_t max_heads = kMaxQueries / static_cast<int32_t>(end - begin);
    for (int64_t t = begin; t < end; ++t) {
        for (int32_t d = head_begin * e; d < head_end * e; d += kLanes) {
            prefetch(args.q + t * args.ldq + d);
            if (args.out) prefetch(args.out + t * args.ldo + d);
        }
    }
    for (int32_t h = head_begin; h < head_end;) {
        const int32_t kv_head = args.kv_of_head[h];
        const int32_t first = h;
        while (h < head_end && h - first < max_heads && args.kv_of_head[h] == kv_head) ++h;
        pass.num_queries = 0;
        for (int64_t t = begin; t < end; ++t) {
            for (int32_t head = first; head < h; ++head) {
                load_query(args.q + t * args.ldq + head * e, e, &pass.operands[pass.num_queries]);
                pass.queries[pass.num_queries++] = {
                    first_key(args, t), args.index.positions[t] + 1, t, head, 0.0f, 0.0f};
            }
        }
        run_pass(args, args.index.row_slot[begin], kv_head, &pass);
    }
}

int64_t row_cost(const PagedAttentionArgs& args, int64_t t) {
    return kRowCost + args.index.positions[t] + 1 - first_key(args, t);
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
    int64_t total = 0;
    for (int64_t t = 0; t < args.rows; ++t) total += row_cost(args, t) * args.num_heads;
    const int64_t cost_begin = total * worker.thread_idx / worker.num_threads;
    const int64_t cost_end = total * (worker.thread_idx + 1) / worker.num_threads;
    int64_t cost = 0;
    for (int64_t begin = 0, end; begin < args.rows; begin = end) {
        int64_t head_cost = row_cost(args, begin);
        for (end = begin + 1; end < args.rows && end - begin < kTileRows &&
                              args.index.row_slot[end] == args.index.row_slot[begin];
             ++end)
            head_cost += row_cost(args, end);
        int32_t head_begin = args.num_heads, head_end = 0;
        for (int32_t h = 0; h < args.num_heads; ++h, cost += head_cost) {
            const int64_t middle =
                cost + head_cost / 2;  // a head belongs to the thread in whose share its middle lies
            if (middle < cost_begin || middle >= cost_end) continue;
            head_begin = h < head_begin ? h : head_begin;
            head_end = h + 1;
        }
        if (head_begin >= head_end) continue;
        switch (args.cache.type) {
            case KvType::f32:
                attend_tile<float>(args, begin, end, head_begin, head_end);
                break;
            case KvType::bf16:
                attend_tile<uint16_t>(args, begin, end, head_begin, head_end);
                break;
            case KvType::int8:
                attend_tile<uint8_t>(args, begin, end, head_begin, head_end);
                break;
        }
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
