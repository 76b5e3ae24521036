// Half floats by bits: every value there and back, and every midpoint to its even neighbour.
#include <bit>
#include <cmath>

#include "check.h"
#include "weights/half.h"

using namespace fastserve;

namespace {

bool is_nan(uint16_t half) {
    return (half & 0x7fff) > 0x7c00;
}

void every_half_survives_the_way_through_float() {
    for (uint32_t half = 0; half < 0x10000; ++half) {
        const auto bits = static_cast<uint16_t>(half);
        if (is_nan(bits))
            CHECK(std::isnan(half_to_float(bits)) && is_nan(float_to_half(half_to_float(bits))));
        else
            CHECK(float_to_half(half_to_float(bits)) == bits);
    }
}

void known_values() {
    CHECK(half_to_float(0x3c00) == 1.0f && half_to_float(0xc000) == -2.0f);
    CHECK(half_to_float(0x7bff) == 65504.0f && half_to_float(0x0001) == 0x1p-24f);
    CHECK(std::isinf(half_to_float(0x7c00)) && std::signbit(half_to_float(0x8000)));
    CHECK(float_to_half(65519.0f) == 0x7bff && float_to_half(65520.0f) == 0x7c00 &&
          float_to_half(1e9f) == 0x7c00);
    CHECK(float_to_half(0x1p-25f) == 0 && float_to_half(std::nextafter(0x1p-25f, 1.0f)) == 1);
}

void a_midpoint_goes_to_the_even_neighbour() {
    for (uint16_t low = 0; low < 0x7bff; ++low) {
        const float middle = (half_to_float(low) + half_to_float(low + 1)) / 2;
        CHECK(float_to_half(middle) == low + (low & 1));
        CHECK(float_to_half(std::nextafter(middle, 0.0f)) == low);
        CHECK(float_to_half(std::nextafter(middle, 1e9f)) == low + 1);
    }
}

}  // namespace

int main() {
    every_half_survives_the_way_through_float();
    known_values();
    a_midpoint_goes_to_the_even_neighbour();
    return failures() != 0;
}
