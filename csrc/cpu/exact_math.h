// exp and log in plain double arithmetic: no libm, no fma, so a draw has the same bits on every ISA and
// machine.
#pragma once

#include <cstdint>

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// e^x for x <= 0 within 2 ulp; 0 below -700. Branch-free: loops over it vectorise.
//
// x = n ln2 + r with |r| <= ln2 / 2, e^r by its Taylor series to r^13 (the next term is 4e-18), times 2^n.
[[gnu::always_inline]] inline double exp_nonpositive(double x) {
    constexpr double kRound =
        6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, in the low bits
    constexpr double kTerms[] = {1.0 / 6227020800,
                                 1.0 / 479001600,
                                 1.0 / 39916800,
                                 1.0 / 3628800,
                                 1.0 / 362880,
                                 1.0 / 40320,
                                 1.0 / 5040,
                                 1.0 / 720,
                                 1.0 / 120,
                                 1.0 / 24,
                                 1.0 / 6,
                                 0.5,
                                 1.0,
                                 1.0};
    const double clamped = x < -700.0 ? -700.0 : x;
    const double shifted = clamped * 1.44269504088896340736 + kRound;
    const double n = shifted - kRound;
    const double r = (clamped - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;  // ln2 in two parts
    double p = kTerms[0];
#pragma GCC unroll 13
    for (int i = 1; i < 14; ++i) p = p * r + kTerms[i];
    uint64_t bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    double power;
    __builtin_memcpy(&power, &bits, sizeof power);
    return x < -700.0 ? 0.0 : p * power;
}

// ln x for positive normal x, within 2 ulp or 1e-16.
//
// x = 2^e m with m in [sqrt(1/2), sqrt(2)], ln m = 2 atanh(s) with s = (m - 1) / (m + 1), |s| < 0.172, by its
// series to s^21 (the next term is 6e-19).
[[gnu::always_inline]] inline double log_positive(double x) {
    uint64_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    const uint64_t above_root = (bits & 0xfffffffffffff) > 0x6a09e667f3bcc;  // mantissa > sqrt(2)
    const int64_t e = static_cast<int64_t>(bits >> 52) - 1023 + static_cast<int64_t>(above_root);
    bits = (bits & 0xfffffffffffff) | (1023 - above_root) << 52;
    double m;
    __builtin_memcpy(&m, &bits, sizeof m);
    const double s = (m - 1.0) / (m + 1.0);
    const double z = s * s;
    double sum = 0.0;
    for (int k = 21; k >= 3; k -= 2) sum = (sum + 1.0 / k) * z;
    const double n = static_cast<double>(e);
    return n * 0x1.62e42feep-1 + (2.0 * s + (2.0 * s * sum + n * 0x1.a39ef35793c76p-33));
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
