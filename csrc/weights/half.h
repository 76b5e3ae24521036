// Scalar conversions of the two 16-bit float formats, rounding to nearest even.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace fastserve {

inline float half_to_float(uint16_t bits) {
    return static_cast<float>(std::bit_cast<_Float16>(bits));
}

inline uint16_t float_to_half(float value) {
    return std::bit_cast<uint16_t>(static_cast<_Float16>(value));
}

inline float bfloat_to_float(uint16_t bits) {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t float_to_bfloat(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN stays NaN
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// At any alignment.
inline uint16_t load_u16(const uint8_t* p) {
    uint16_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits;
}

}  // namespace fastserve
