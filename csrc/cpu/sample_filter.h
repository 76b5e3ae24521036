// Top-k, top-p and min-p over a whole row of logits.
//
// Tokens are ordered by logit, ties by the lower id first. Top-k keeps the first k of that order; top-p the
// shortest beginning whose probabilities (of what top-k kept) reach p; min-p those at least min_p times as
// likely as the likeliest. What is dropped becomes -inf.
//
// Nothing is sorted. Both beginnings end where a running weight (1 per token, or its probability) reaches a
// target: three passes of a radix select over the bits of the logit find the logit at which it does, and how
// many of the tokens with exactly that logit still belong.
#pragma once

#include <cstdint>

#include "cpu/sample_draw.h"
#include "ops.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// Larger logits have larger keys. x is neither NaN nor -0.
[[gnu::always_inline]] inline uint32_t order_key(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Cut {
    uint32_t key;      // tokens with a larger key stay,
    int64_t num_ties;  // and the first num_ties with this key
};

constexpr int32_t kRadixBits = 11;
constexpr int32_t kBuckets = 1 << kRadixBits;

// One digit: the bucket, from the highest down, in which `above` plus the running weight reaches the target;
// the weight of the buckets over it is added to `above`. If rounding keeps all from reaching it: the lowest
// bucket.
inline static int32_t find_bucket(const double* sums, double target, double* above) {
    int32_t bucket = kBuckets - 1;
    for (; bucket > 0 && *above + sums[bucket] < target; --bucket) *above += sums[bucket];
    return bucket;
}

// Writes the tokens [0, n) with x >= limit to ids; returns how many.
inline static int32_t shortlist(const float* x, int32_t n, float limit, int32_t* ids) {
    int32_t num = 0;
    for (int32_t i = 0; i < n; ++i) {
        ids[num] = i;
        num += x[i] >= limit ? 1 : 0;
    }
    return num;
}

// The cut in the order of x[0 .. n) at which the weight reaches the target. weight(id) is the same for tokens
// with the same logit. ids [n]: scratch.
//
// Most of a vocabulary lies far below the cut: it is looked for among the tokens within 6, then 12, of the
// likeliest, as soon as these weigh enough. Tokens below a cut enter no sum, so the cut does not depend on
// that.
template <class Weight>
inline static Cut find_cut(const float* x, int32_t n, float highest, double target, Weight weight,
                           int32_t* ids) {
    int32_t num = 0;
    for (const float margin : {6.0f, 12.0f, __builtin_inff()}) {
        num = shortlist(x, n, highest - margin, ids);
        double total = 0.0;
        for (int32_t i = 0; i < num; ++i) total += weight(ids[i]);
        if (total >= target) break;
    }
    double sums[kBuckets];
    double above = 0.0, weight_at_cut = 1.0;
    uint64_t prefix = 0;  // the digits found so far
    for (int32_t shift = 2 * kRadixBits; shift >= 0; shift -= kRadixBits) {
        for (double& sum : sums) sum = 0.0;
        for (int32_t i = 0; i < num; ++i) {
            const uint64_t key = uint64_t{order_key(x[ids[i]])};  // 33 bits, the first of them 0
            if (key >> (shift + kRadixBits) == prefix) sums[key >> shift & (kBuckets - 1)] += weight(ids[i]);
        }
        prefix = prefix << kRadixBits | static_cast<uint64_t>(find_bucket(sums, target, &above));
    }
    int64_t num_at_cut = 0, num_ties = 0;
    for (int32_t i = 0; i < num; ++i) {
        if (order_key(x[ids[i]]) != prefix) continue;
        weight_at_cut = weight(ids[i]);
        ++num_at_cut;
    }
    for (; num_ties < num_at_cut && above < target; ++num_ties) above += weight_at_cut;
    return {static_cast<uint32_t>(prefix), num_ties};
}

inline static void drop_after(float* x, int32_t n, Cut cut) {
    for (int32_t i = 0; i < n; ++i) {
        const uint32_t key = order_key(x[i]);
        const bool stays = key > cut.key || (key == cut.key && cut.num_ties-- > 0);
        if (!stays) x[i] = kNoScore;
    }
}

// weights[i] = e^(x[i] - highest); returns their sum, in 8 interleaved parts that are added in order: a fixed
// order that the compiler can vectorise.
inline static double weigh(const float* x, int32_t n, float highest, float* weights) {
    const Vec top = splat(highest);
    int32_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(weights + i, exp(sub(load(x + i), top)));
    if (i < n) store_n(weights + i, exp(sub(load_n(x + i, n - i), top)), n - i);
    double parts[8] = {};
    for (i = 0; i + 8 <= n; i += 8)
        for (int32_t j = 0; j < 8; ++j) parts[j] += static_cast<double>(weights[i + j]);
    for (; i < n; ++i) parts[0] += static_cast<double>(weights[i]);
    double sum = 0.0;
    for (const double part : parts) sum += part;
    return sum;
}

// x [n]: logits after penalties, divided by the temperature, neither NaN, +inf nor -0. weights, ids [n]:
// scratch.
inline static void apply_filters(float* x, int32_t n, const SamplingState& state, float* weights,
                                 int32_t* ids) {
    const float highest = draw_greedy(x, 0, n).score;
    if (highest == kNoScore) return;
    if (state.top_k > 0 && state.top_k < n) {
        const auto one = [](int32_t) { return 1.0; };
        drop_after(x, n, find_cut(x, n, highest, state.top_k, one, ids));
    }
    if (!(state.top_p < 1.0f) && !(state.min_p > 0.0f)) return;
    const double total = weigh(x, n, highest, weights);
    if (state.top_p < 1.0f) {
        const double target = static_cast<double>(state.top_p) * total;
        const auto weight = [weights](int32_t i) { return static_cast<double>(weights[i]); };
        drop_after(x, n, find_cut(x, n, highest, target, weight, ids));
    }
    if (state.min_p > 0.0f) {
        for (int32_t i = 0; i < n; ++i) x[i] = weights[i] < state.min_p ? kNoScore : x[i];
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
