// paged_attention over keys and values of floats: Float is the element of the cache, float, or uint16_t for
// bfloat16.
#include "cpu/paged_attention.h"

#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

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

}  // namespace

void load_query(const float* q, int32_t e, Operand<float>* to) {
    __builtin_memcpy(to->q, q, sizeof(float) * static_cast<size_t>(e));
}
void load_query(const float* q, int32_t e, Operand<uint16_t>* to) {
    for (int32_t i = 0; i < e; i += kLanes)
        round_stored(to->q + i, i + kLanes <= e ? load(q + i) : load_n(q + i, e - i));
}

void attend(const Partition<float>& partition, int32_t e, float scale, Pass<float>* pass, const int32_t* idx,
            int32_t num, Ahead* ahead) {
    for_num_queries(
        num, [&]<int kQueries>() { attend_together<kQueries>(partition, e, scale, pass, idx, ahead); });
}

void attend(const Partition<uint16_t>& partition, int32_t e, float scale, Pass<uint16_t>* pass,
            const int32_t* idx, int32_t num, Ahead* ahead) {
    for_num_queries(
        num, [&]<int kQueries>() { attend_together<kQueries>(partition, e, scale, pass, idx, ahead); });
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
