// paged_attention over keys and values of 8 bits. Both products are of integers, exact in any order.
//
// Scores: a query becomes codes of 14 bits, two digits (cpu/matmul_operand.h), so that keys alone decide how
// exact a score is: key scale * query scale * (sum over dimensions of code * code).
//
// Values: in a partition, e^(score - highest) of a key times the scale of its values is what its codes are
// multiplied with, in 14 bits of the largest such product of the partition. What is smaller than half a step,
// a 16,000th, is lost; all that is lost together is below 1.6 % of the largest product.
//
// Memory beyond a query's keys holds codes, which a weight of 0 ends, and scales, which lanes of others never
// meet.
#include "cpu/hadamard.h"
#include "cpu/matmul_operand.h"
#include "cpu/paged_attention.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

constexpr int32_t kBytes = 4;  // that one multiplication adds to a lane: dimensions of a key, keys of a value
constexpr float kSmallestStep = 1e-37f;  // below, values are as good as 0, and 1 / step is not finite
constexpr float kNan = __builtin_nanf("");
constexpr int32_t kInfinity = 0x7f800000;  // as integers, NaN lies above

// As accumulators_per_query, but for many queries fewer: digits of each lie in a register too.
constexpr int32_t sums_per_query(int32_t num_queries) {
    const int32_t most = num_queries <= 3 ? 4 : 2, fit = accumulators_per_query<Vec>(num_queries);
    return fit < most ? fit : most;
}

// A query's weights in a partition.
struct Weights {
    alignas(64) int8_t high[kPartitionSize];
    alignas(64) int8_t low[kPartitionSize];
    float step;
    int32_t base;  // what the integer products with values lack
};

// 1 / step, or 0 where all that is divided by it is as good as 0.
FASTSERVE_INLINE Vec per_step(float step) {
    return splat(step < kSmallestStep ? 0.0f : 1.0f / step);
}

// dot_u8 takes kOffsetU8 from bytes that stand for u - 128.
FASTSERVE_INLINE int32_t missing(VecI sum_of_codes) {
    return reduce_add(sum_of_codes) * (kOffsetU8 - 128);
}

FASTSERVE_INLINE Vec key_scales(const uint8_t* key_block, int32_t e) {
    return load_bf16(reinterpret_cast<const uint16_t*>(key_block + e * kBlockSize));
}
FASTSERVE_INLINE Vec value_scales(const uint8_t* key_block, int32_t e) {
    return load_bf16(reinterpret_cast<const uint16_t*>(key_block + e * kBlockSize) + kBlockSize);
}

// scores[j][16 b ..] of `kBlocks` blocks from b on, and into tops[j] the highest of each lane.
template <int kQueries, int kBlocks>
void score_blocks(const Operand<uint8_t>* const* q, const uint8_t* const* k, int32_t e, float scale,
                  float (*scores)[kPartitionSize], Vec* tops, int32_t b, Ahead* ahead) {
    VecI sums[kQueries][kBlocks];
    const uint8_t* next[kBlocks];
    if constexpr (kFetchesAhead<kQueries>)
        for (int n = 0; n < kBlocks; ++n) next[n] = ahead->take(key_block_bytes(KvType::int8, e));
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < kBlocks; ++n) sums[j][n] = zero_i();
    for (int32_t i = 0; i < e; i += kBytes) {
#pragma GCC unroll 8
        for (int n = 0; n < kBlocks; ++n) {
            if constexpr (kFetchesAhead<kQueries>) prefetch(next[n] + i * kBlockSize);
            const VecI keys = operand_u8(load(k[b + n] + i * kBlockSize));
#pragma GCC unroll 8
            for (int j = 0; j < kQueries; ++j)
                sums[j][n] = dot_u8(sums[j][n], keys, broadcast4(q[j]->high + i));
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < kBlocks; ++n)
            sums[j][n] = add(shift_left<kDigitBits>(sums[j][n]), splat(q[j]->base));
    for (int32_t i = 0; i < e; i += kBytes) {
#pragma GCC unroll 8
        for (int n = 0; n < kBlocks; ++n) {
            const VecI keys = operand_u8(load(k[b + n] + i * kBlockSize));
#pragma GCC unroll 8
            for (int j = 0; j < kQueries; ++j)
                sums[j][n] = dot_u8(sums[j][n], keys, broadcast4(q[j]->low + i));
        }
    }
    Vec of_keys[kBlocks];
#pragma GCC unroll 8
    for (int n = 0; n < kBlocks; ++n) {
        of_keys[n] = key_scales(k[b + n], e);
        if constexpr (kFetchesAhead<kQueries>) prefetch(next[n] + e * kBlockSize);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j) {
        const Vec of_query = splat(q[j]->scale * scale);
        Vec top = tops[j];
#pragma GCC unroll 8
        for (int n = 0; n < kBlocks; ++n) {
            const Vec score = mul(to_float(sums[j][n]), mul(of_keys[n], of_query));
            store(scores[j] + (b + n) * kBlockSize, score);
            top = max(score, top);
        }
        tops[j] = top;
    }
}

// What values are multiplied with, before it is rounded.
struct Products {
    float sum;        // of the exponentials
    int32_t largest;  // bits of the largest: none is negative, so integers are ordered alike, NaN above
};

// Of a partition's scores that a query sees e^(score - highest) times the scale of the key's values, in their
// place; 0 of the others in their blocks.
Products weigh(float* scores, Span seen, const uint8_t* const* k, int32_t e, float highest) {
    const int32_t first = seen.begin / kBlockSize, last = (seen.end - 1) / kBlockSize;
    Vec sum = zero();
    VecI largest = zero_i();
    for (int32_t b = first; b <= last; ++b) {
        float* lanes = scores + b * kBlockSize;
        const Vec weight = exp_weight(sub(load(lanes), splat(highest)));
        sum = add(sum, weight);
        Vec product = mul(weight, value_scales(k[b], e));
        if (b == first) product = select_below(seen.begin - b * kBlockSize, zero(), product);
        if (b == last) product = select_below(seen.end - b * kBlockSize, product, zero());
        store(lanes, product);
        largest = max(largest, as_int(product));
    }
    return {reduce_add(sum), reduce_max(largest)};
}

// The codes of a query's products, and 0 for the other keys of blocks that any query sees.
void encode(const float* products, int32_t largest, Span seen, Span any, Weights* weights) {
    weights->step = largest < kInfinity ? __builtin_bit_cast(float, largest) / kMaxCode : kNan;
    const Vec factor = per_step(weights->step);
    VecI sum_of_codes = zero_i();
    for (int32_t key = any.begin / kBlockSize * kBlockSize; key < any.end; key += kBlockSize) {
        const bool none = key + kBlockSize <= seen.begin || key >= seen.end || largest >= kInfinity;
        const VecI codes = none ? zero_i() : to_int(mul(load(products + key), factor));
        sum_of_codes = add(sum_of_codes, codes);
        store_digits(codes, weights->high + key, weights->low + key);
    }
    weights->base = missing(sum_of_codes);
}

// Bytes of 16 dimensions of 4 values, or of the last ones.
template <bool kWhole>
FASTSERVE_INLINE VecI load_values(const uint8_t* v, int32_t num_dims) {
    if constexpr (kWhole) return load(v);
    alignas(64) uint8_t bytes[kLanes * kBytes] = {};
    __builtin_memcpy(bytes, v, static_cast<size_t>(num_dims * kBytes));
    return load(bytes);
}

// sums[j][n] += one of the digits of weights[j] * the values of blocks [first, end), dimensions [d + 16 n,
// ..).
template <auto kDigit, bool kWhole, bool kFetches, int kQueries, int kVecs>
FASTSERVE_INLINE void add_digit(const Weights* weights, const uint8_t* const* v, int32_t first, int32_t end,
                                int32_t e, int32_t d, VecI (&sums)[kQueries][kVecs], Ahead* ahead) {
    for (int32_t b = first; b < end; ++b) {
        const uint8_t* row = v[b] + d * kBytes;
#pragma GCC unroll 4
        for (int32_t key = 0; key < kBlockSize; key += kBytes, row += e * kBytes) {
            const uint8_t* next;
            if constexpr (kFetches) next = ahead->take(kVecs * kLineBytes);
#pragma GCC unroll 8
            for (int n = 0; n < kVecs; ++n) {
                if constexpr (kFetches) prefetch(next + n * kLineBytes);
                const VecI values = operand_u8(load_values<kWhole>(row + n * kLanes * kBytes, e - d));
#pragma GCC unroll 8
                for (int j = 0; j < kQueries; ++j) {
                    const int8_t* digits = (weights[j].*kDigit) + b * kBlockSize + key;
                    sums[j][n] = dot_u8(sums[j][n], values, broadcast4(digits));
                }
            }
        }
    }
}

// parts[j][d ..] = weights[j] * the values of blocks [first, end); kVecs vectors wide.
template <int kQueries, int kVecs, bool kWhole = true>
void multiply_values(const Weights* weights, const uint8_t* const* v, int32_t first, int32_t end, int32_t e,
                     int32_t d, float (*parts)[kMaxHeadDim], Ahead* ahead) {
    VecI sums[kQueries][kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < kVecs; ++n) sums[j][n] = zero_i();
    add_digit<&Weights::high, kWhole, kFetchesAhead<kQueries>>(weights, v, first, end, e, d, sums, ahead);
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < kVecs; ++n)
            sums[j][n] = add(shift_left<kDigitBits>(sums[j][n]), splat(weights[j].base));
    add_digit<&Weights::low, kWhole, false>(weights, v, first, end, e, d, sums, ahead);
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < kVecs; ++n)
            store(parts[j] + d + n * kLanes, mul(to_float(sums[j][n]), splat(weights[j].step)));
}

template <int kQueries>
void multiply_all_values(const Weights* weights, const uint8_t* const* v, int32_t first, int32_t end,
                         int32_t e, float (*parts)[kMaxHeadDim], Ahead* ahead) {
    constexpr int32_t kVecs = sums_per_query(kQueries);
    int32_t d = 0;
    for (; d + kVecs * kLanes <= e; d += kVecs * kLanes)
        multiply_values<kQueries, kVecs>(weights, v, first, end, e, d, parts, ahead);
    for (; d + kLanes <= e; d += kLanes)
        multiply_values<kQueries, 1>(weights, v, first, end, e, d, parts, ahead);
    if (d < e) multiply_values<kQueries, 1, false>(weights, v, first, end, e, d, parts, ahead);
}

template <int kQueries>
void attend_together(const Partition<uint8_t>& partition, int32_t e, float scale, Pass<uint8_t>* pass,
                     const int32_t* idx, Ahead* ahead) {
    alignas(64) float scores[kQueries][kPartitionSize];
    alignas(64) float parts[kQueries][kMaxHeadDim];
    Weights weights[kQueries];
    const Operand<uint8_t>* q[kQueries];
    for (int j = 0; j < kQueries; ++j) q[j] = &pass->operands[idx[j]];
    const Views<kQueries> seen(partition, *pass, idx);
    constexpr int32_t kBlocks = sums_per_query(kQueries);
    const int32_t first_block = seen.any.begin / kBlockSize;
    const int32_t end_block = (seen.any.end + kBlockSize - 1) / kBlockSize;
    int32_t b = first_block;
    Tops<kQueries> tops(seen.all);
    for (; b + kBlocks <= end_block; b += kBlocks)
        score_blocks<kQueries, kBlocks>(q, partition.k, e, scale, scores, tops.of(b, kBlocks), b, ahead);
    for (; b < end_block; ++b)
        score_blocks<kQueries, 1>(q, partition.k, e, scale, scores, tops.of(b, 1), b, ahead);
    float highest[kQueries];
    Products products[kQueries];
    for (int j = 0; j < kQueries; ++j) highest[j] = tops.mask_scores(scores[j], seen.each[j], j);
    for (int j = 0; j < kQueries; ++j)
        products[j] = weigh(scores[j], seen.each[j], partition.k, e, highest[j]);
    for (int j = 0; j < kQueries; ++j)
        encode(scores[j], products[j].largest, seen.each[j], seen.any, &weights[j]);
    multiply_all_values<kQueries>(weights, partition.v, first_block, end_block, e, parts, ahead);
    for (int j = 0; j < kQueries; ++j)
        merge(&pass->queries[idx[j]], pass->values[idx[j]], highest[j], products[j].sum, parts[j], e);
}

}  // namespace

void load_query(const float* q, int32_t e, Operand<uint8_t>* to) {
    alignas(64) float mixed[kMaxHeadDim];
    mix(q, e, mixed);
    VecI largest = zero_i();  // magnitudes are ordered as integers, and NaN is above all
    for (int32_t d = 0; d < e; d += kLanes) largest = max(largest, as_int(abs(load(mixed + d))));
    const int32_t magnitude = reduce_max(largest);
    if (magnitude >= kInfinity) {
        __builtin_memset(to, 0, sizeof *to);
        to->scale = kNan;
        return;
    }
    const float step = __builtin_bit_cast(float, magnitude) / kMaxCode;
    const Vec factor = per_step(step);
    VecI sum_of_codes = zero_i();
    for (int32_t d = 0; d < e; d += kLanes) {
        const VecI codes = to_int(mul(load(mixed + d), factor));
        sum_of_codes = add(sum_of_codes, codes);
        store_digits(codes, to->high + d, to->low + d);
    }
    to->scale = step / static_cast<float>(num_mixed(e));  // a power of two
    to->base = missing(sum_of_codes);
}

void attend(const Partition<uint8_t>& partition, int32_t e, float scale, Pass<uint8_t>* pass,
            const int32_t* idx, int32_t num, Ahead* ahead) {
    for_num_queries(
        num, [&]<int kQueries>() { attend_together<kQueries>(partition, e, scale, pass, idx, ahead); });
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
