// Drawing by Gumbel-max: the token with the largest logit / temperature + noise, where the noise of a token
// depends on (seed, output index, token id) alone. Shards draw from their own columns and the best score
// wins.
#pragma once

#include <cstdint>

#include "cpu/exact_log.h"
#include "cpu/philox.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

constexpr float kNoScore = -__builtin_inff();

struct Candidate {
    float score;
    int32_t id;
};

// Ties go to the lowest id.
[[gnu::always_inline]] inline Candidate better(Candidate a, Candidate b) {
    return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
}

// The largest of logits[0 .. n), token ids counted from first_id. NaN counts as -inf; where all are -inf,
// first_id. Runs of 256 are searched for the token only when their maximum is above the best so far.
inline static Candidate draw_greedy(const float* logits, int32_t first_id, int32_t n) {
    constexpr int32_t kRun = 16 * kLanes;
    Candidate best{kNoScore, first_id};
    for (int32_t begin = 0; begin < n; begin += kRun) {
        const int32_t end = begin + kRun < n ? begin + kRun : n;
        Vec highest = splat(kNoScore);
        int32_t i = begin;
        for (; i + kLanes <= end; i += kLanes) highest = max(load(logits + i), highest);
        if (i < end) highest = max(select_below(end - i, load_n(logits + i, end - i), highest), highest);
        const float score = reduce_max(highest);
        if (!(score > best.score)) continue;
        for (i = begin; logits[i] != score;) ++i;
        best = {score, first_id + i};
    }
    return best;
}

// -ln(-ln u) with u = (word + 1/2) / 2^32.
[[gnu::always_inline]] inline double gumbel(uint32_t word) {
    const double u = (static_cast<double>(word) + 0.5) * 0x1p-32;
    return -log_positive(-log_positive(u));
}

// At least gumbel(word), and at most 0.7 above it in the upper tail: -ln u >= 1 - u, hence gumbel <= -ln(1 -
// u), and 1 - u >= 2^(e - 24) with e the exponent of the word's complement, seen as a 24-bit fraction.
[[gnu::always_inline]] inline float gumbel_bound(uint32_t word) {
    const float rest = static_cast<float>(static_cast<int32_t>(~word >> 8));
    uint32_t bits;
    __builtin_memcpy(&bits, &rest, sizeof bits);
    const int32_t exponent = static_cast<int32_t>(bits >> 23) - 127;
    return static_cast<float>(24 - exponent) * 0.693148f;  // ln2, rounded up; 0 gives 104, above any noise
}

[[gnu::always_inline]] inline float score_of(float x, uint32_t word) {
    return static_cast<float>(static_cast<double>(x) + gumbel(word));
}

// One group of 64 tokens. The two logarithms are taken only for tokens whose bound reaches the best score, a
// handful of a vocabulary: rounding is monotone, so the bound of the sum bounds the rounded sum.
inline static Candidate draw_group(const float (&x)[kNoiseGroup], int32_t group, uint64_t seed,
                                   int32_t output_idx, Candidate best) {
    uint32_t words[4][kNoiseGroup / 4];
    noise_words(seed, output_idx, group, words);
    const uint32_t* word = &words[0][0];
    int32_t reaching = 0;
    for (int32_t i = 0; i < kNoiseGroup; ++i) reaching += x[i] + gumbel_bound(word[i]) >= best.score ? 1 : 0;
    if (reaching == 0) return best;
    for (int32_t i = 0; i < kNoiseGroup; ++i)
        if (x[i] > kNoScore && x[i] + gumbel_bound(word[i]) >= best.score)
            best = better(best, {score_of(x[i], word[i]), group * kNoiseGroup + i});
    return best;
}

// The winner among x[0 .. n) = logits / temperature, token ids counted from first_id. -inf is never drawn,
// unless there is nothing else: then first_id.
inline static Candidate draw_random(const float* x, int32_t first_id, int32_t n, uint64_t seed,
                                    int32_t output_idx) {
    constexpr float kNoiseMax = 23.0f;  // > -ln(-ln(1 - 2^-33))
    Candidate best{kNoScore, first_id};
    const int32_t end_id = first_id + n;
    for (int32_t group = first_id / kNoiseGroup; group * kNoiseGroup < end_id; ++group) {
        float lanes[kNoiseGroup];
        float highest = kNoScore;
        const int32_t base = group * kNoiseGroup;
        if (base >= first_id && base + kNoiseGroup <= end_id) {
            __builtin_memcpy(lanes, x + (base - first_id), sizeof lanes);
        } else {
            for (int32_t i = 0; i < kNoiseGroup; ++i)
                lanes[i] = base + i >= first_id && base + i < end_id ? x[base + i - first_id] : kNoScore;
        }
        for (int32_t i = 0; i < kNoiseGroup; ++i) highest = lanes[i] > highest ? lanes[i] : highest;
        if (highest > kNoScore && highest + kNoiseMax >= best.score)
            best = draw_group(lanes, group, seed, output_idx, best);
    }
    return best;
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
