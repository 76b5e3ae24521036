// What draws are made of: Philox gives its published answers, log agrees with libm, bounds are
// bounds.
#include <cmath>
#include <random>

#define FASTSERVE_ISA_NAMESPACE portable_in_test
#include "check.h"
#include "cpu/sample_draw.h"

namespace headers = fastserve::portable_in_test;

namespace {

void philox_gives_the_known_answers() {
    const uint32_t cases[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb,
         0x5001e420, 0x24126ea1}};
    for (const auto& c : cases) {
        uint32_t words[4][1] = {{c[0]}, {c[1]}, {c[2]}, {c[3]}};
        headers::philox4x32_10(c[4], c[5], words);
        for (int w = 0; w < 4; ++w) CHECK(words[w][0] == c[6 + w]);
    }
}

void log_agrees_with_libm() {
    for (double x = 1e-10; x < 1e10; x *= 1.0371)
        CHECK(std::fabs(headers::log_positive(x) - std::log(x)) < 4e-16 * std::fabs(std::log(x)) + 1e-16);
    CHECK(std::fabs(headers::log_positive(1.0 - 0x1p-33) + 0x1p-33) < 1e-19);
}

void the_bound_is_above_the_noise() {
    std::mt19937 random(1);
    for (int i = 0; i < 200000; ++i) {
        const uint32_t word =
            i < 300 ? ~static_cast<uint32_t>(i) : static_cast<uint32_t>(random()) | (i % 2 ? 0xfff00000u : 0);
        CHECK(static_cast<double>(headers::gumbel_bound(word)) >= headers::gumbel(word));
    }
}

}  // namespace

int main() {
    philox_gives_the_known_answers();
    log_agrees_with_libm();
    the_bound_is_above_the_noise();
    return failures() != 0;
}
