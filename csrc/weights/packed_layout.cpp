#include "weights/packed_layout.h"

#include <iterator>
#include <limits>
#include <stdexcept>

#include "weights/gguf_type.h"

namespace fastserve {
namespace {

constexpr const char* kNames[] = {"f32", "f16", "bf16", "q8", "q4", "q4m"};  // in the order of WeightType

constexpr int64_t round_up(int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
}

void check_size(const char* name, int64_t value) {
    if (value < 1 || value > std::numeric_limits<int32_t>::max())
        throw std::invalid_argument(std::string(name) + " must be in [1, 2^31), got " +
                                    std::to_string(value));
}

}  // namespace

const char* weight_type_name(WeightType type) {
    return kNames[static_cast<int>(type)];
}

WeightType find_weight_type(const std::string& name) {
    for (size_t i = 0; i < std::size(kNames); ++i)
        if (name == kNames[i]) return static_cast<WeightType>(i);
    throw std::invalid_argument("type must be f32, f16, bf16, q8, q4 or q4m, got " + name);
}

WeightType packed_type(uint32_t gguf_type) {
    switch (gguf_type) {
        case 0:
            return WeightType::f32;
        case 1:
            return WeightType::f16;
        case 2:
            return WeightType::q4;
        case 3:
            return WeightType::q4m;
        case 8:
            return WeightType::q8;
        case 30:
            return WeightType::bf16;
    }
    const GgufType* known = find_gguf_type(gguf_type);
    const std::string got = known ? known->name : std::to_string(gguf_type);
    throw std::invalid_argument("gguf_type must be F32, F16, BF16, Q4_0, Q4_1 or Q8_0, got " + got);
}

int64_t panel_bytes(WeightType type, int64_t k) {
    check_size("k", k);
    if (is_quantised(type) && k % kQuantBlock != 0)
        throw std::invalid_argument("k must be a multiple of 32 for " + std::string(weight_type_name(type)) +
                                    ", got " + std::to_string(k));
    const int64_t blocks = k / kQuantBlock;
    switch (type) {
        case WeightType::f32:
            return k * kPanel * 4;
        case WeightType::f16:
            return k * kPanel * 2;
        case WeightType::bf16:
            return round_up(k, 2) * kPanel * 2;
        case WeightType::q8:
            return blocks * kPanel * (2 + 32);
        case WeightType::q4:
            return blocks * kPanel * (2 + 16);
        case WeightType::q4m:
            return blocks * kPanel * (4 + 16);
    }
    throw std::invalid_argument("type must be a WeightType, got " + std::to_string(static_cast<int>(type)));
}

int64_t packed_bytes(WeightType type, int64_t n, int64_t k) {
    check_size("n", n);
    return round_up(n, kPanel) / kPanel * panel_bytes(type, k);
}

}  // namespace fastserve
