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

#include "cpu/exact_math.h"
#include "ops.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

constexpr float kDropped = -__builtin_inff();

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

// weight(i) is the same for tokens with the same logit.
template <class Weight>
inline static Cut find_cut(const float* x, int32_t n, double target, Weight weight) {
    double sums[kBuckets];
    double above = 0.0, weight_at_cut = 1.0;
    int64_t num_at_cut = 0;
    uint64_t prefix = 0;  // the digits found so far
    for (int32_t shift = 2 * kRadixBits; shift >= 0; shift -= kRadixBits) {
        for (double& sum : sums) sum = 0.0;
        num_at_cut = 0;
        for (int32_t i = 0; i < n; ++i) {
            const uint64_t key = uint64_t{order_key(x[i])};  // 33 bits, the first of them 0
            if (key >> (shift + kRadixBits) == prefix) sums[key >> shift & (kBuckets - 1)] += weight(i);
        }
        prefix = prefix << kRadixBits | static_cast<uint64_t>(find_bucket(sums, target, &above));
    }
    for (int32_t i = 0; i < n; ++i) {
        if (order_key(x[i]) != prefix) continue;
        weight_at_cut = weight(i);
        ++num_at_cut;
    }
    int64_t num_ties = 0;
    while (num_ties < num_at_cut && above < target) {
        above += weight_at_cut;
        ++num_ties;
    }
    return {static_cast<uint32_t>(prefix), num_ties};
}

inline static void drop_after(float* x, int32_t n, Cut cut) {
    for (int32_t i = 0; i < n; ++i) {
        const uint32_t key = order_key(x[i]);
        const bool stays = key > cut.key || (key == cut.key && cut.num_ties-- > 0);
        if (!stays) x[i] = kDropped;
    }
}

// x [n]: logits after penalties, divided by the temperature, neither NaN nor -0. weights [n]: scratch.
inline static void apply_filters(float* x, int32_t n, const SamplingState& state, float* weights) {
    if (state.top_k > 0 && state.top_k < n)
        drop_after(x, n, find_cut(x, n, state.top_k, [](int32_t) { return 1.0; }));
    if (!(state.top_p < 1.0f) && !(state.min_p > 0.0f)) return;
    float highest = kDropped;
    for (int32_t i = 0; i < n; ++i) highest = x[i] > highest ? x[i] : highest;
    if (highest == kDropped) return;
    for (int32_t i = 0; i < n; ++i)
        weights[i] =
            static_cast<float>(exp_nonpositive(static_cast<double>(x[i]) - static_cast<double>(highest)));
    if (state.top_p < 1.0f) {
        double total = 0.0;
        for (int32_t i = 0; i < n; ++i) total += static_cast<double>(weights[i]);
        const double target = static_cast<double>(state.top_p) * total;
        drop_after(x, n,
                   find_cut(x, n, target, [weights](int32_t i) { return static_cast<double>(weights[i]); }));
    }
    if (state.min_p > 0.0f) {
        for (int32_t i = 0; i < n; ++i)
            if (weights[i] < state.min_p) x[i] = kDropped;
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
