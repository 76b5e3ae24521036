// The portable fma against libm's: every rounding, and what is special.
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>

#define FASTSERVE_ISA_NAMESPACE portable
#define FASTSERVE_ISA_portable 1
#include "check.h"
#include "cpu/simd.h"

namespace {

using namespace fastserve::portable;

void expect_fma(float a, float b, float c) {
    const float expected = std::fma(a, b, c);
    float got[kLanes];
    store(got, fma(splat(a), splat(b), splat(c)));
    for (const float value : got) {
        if (std::bit_cast<uint32_t>(value) == std::bit_cast<uint32_t>(expected)) continue;
        if (std::isnan(value) && std::isnan(expected)) continue;
        std::printf("fma(%a, %a, %a) = %a, expected %a\n", static_cast<double>(a), static_cast<double>(b),
                    static_cast<double>(c), static_cast<double>(value), static_cast<double>(expected));
        ++failures();
        return;
    }
}

void test_any_bits() {
    std::mt19937 draw(1);
    const auto any = [&] { return std::bit_cast<float>(static_cast<uint32_t>(draw())); };
    for (int i = 0; i < 1'000'000; ++i) expect_fma(any(), any(), any());
}

// The product is in the middle between two floats, up to an addend too small for a double to hold beside it:
// where rounding twice goes wrong.
void test_near_ties() {
    std::mt19937 draw(2);
    std::uniform_int_distribution<int> exponent(-100, -35);
    for (int i = 0; i < 1'000'000; ++i) {
        const auto a = static_cast<float>(draw() % 0x1000 | 0x1001),
                   b = static_cast<float>(draw() % 0x800 | 0x801);
        const float c = std::ldexp(a * b, exponent(draw));
        expect_fma(a, b, draw() % 2 ? c : -c);
        expect_fma(-a, b, draw() % 2 ? c : -c);
        expect_fma(a, b, -a * b);
    }
}

void test_special() {
    const float values[] = {0.0f,      -0.0f,    1.0f,     -1.0f,     0x1p-149f, -0x1p-149f,
                            0x1p-126f, 0x1p127f, 0x1p-75f, 3e38f,     -3e38f,    INFINITY,
                            -INFINITY, NAN,      0x1p24f,  0x1p-100f, 1e-30f,    0x1.fffffep0f};
    for (const float a : values)
        for (const float b : values)
            for (const float c : values) expect_fma(a, b, c);
}

}  // namespace

int main() {
    test_any_bits();
    test_near_ties();
    test_special();
    return failures() == 0 ? 0 : 1;
}
