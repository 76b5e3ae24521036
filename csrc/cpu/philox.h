// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random words as a
// pure function of a key and a counter, so a draw depends on nothing but what it is keyed by.
//
// Sampling keys it by the request's seed; the counter is (c, output_idx, 0, 0). A counter yields four words
// and tokens come in groups of 64, so that neighbours lie in neighbouring lanes: token 64 g + 16 w + j takes
// word w of counter c = 16 g + j.
#pragma once

#include <cstdint>

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

constexpr int32_t kNoiseGroup = 64;  // tokens whose random words are made together

// counters[w][j] is word w of counter j; replaced by the random words. The loop over j has no branches: the
// compiler vectorises it.
template <int kCounters>
[[gnu::always_inline]] inline void philox4x32_10(uint32_t key0, uint32_t key1,
                                                 uint32_t (&counters)[4][kCounters]) {
    for (int j = 0; j < kCounters; ++j) {
        uint32_t c0 = counters[0][j], c1 = counters[1][j], c2 = counters[2][j], c3 = counters[3][j];
        uint32_t k0 = key0, k1 = key1;
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
            const uint64_t p0 = uint64_t{0xD2511F53} * c0;
            const uint64_t p1 = uint64_t{0xCD9E8D57} * c2;
            c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
            c1 = static_cast<uint32_t>(p1);
            c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
            c3 = static_cast<uint32_t>(p0);
            k0 += 0x9E3779B9;
            k1 += 0xBB67AE85;
        }
        counters[0][j] = c0;
        counters[1][j] = c1;
        counters[2][j] = c2;
        counters[3][j] = c3;
    }
}

// words[w][j] belongs to token 64 * group + 16 * w + j.
[[gnu::always_inline]] inline void noise_words(uint64_t seed, int32_t output_idx, int32_t group,
                                               uint32_t (&words)[4][kNoiseGroup / 4]) {
    for (int32_t j = 0; j < kNoiseGroup / 4; ++j) {
        words[0][j] = static_cast<uint32_t>(group * (kNoiseGroup / 4) + j);
        words[1][j] = static_cast<uint32_t>(output_idx);
        words[2][j] = words[3][j] = 0;
    }
    philox4x32_10(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), words);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
