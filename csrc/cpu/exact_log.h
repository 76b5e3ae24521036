// The logarithm in plain double arithmetic: no libm, no fma, so a draw has the same bits on every ISA and
// machine.
#pragma once

#include <cstdint>

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

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
