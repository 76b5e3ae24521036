// Sizes and names of packed weights; the layouts themselves are described at WeightType in ops.h.
#pragma once

#include <cstdint>
#include <string>

#include "ops.h"

namespace fastserve {

// "f32", "f16", "bf16", "q8", "q4", "q4m".
const char* weight_type_name(WeightType type);
// Throws std::invalid_argument for another name.
WeightType find_weight_type(const std::string& name);

// The packed type that keeps every bit of a GGUF type. Throws std::invalid_argument if there is none.
WeightType packed_type(uint32_t gguf_type);

constexpr bool is_quantised(WeightType type) {
    return type == WeightType::q8 || type == WeightType::q4 || type == WeightType::q4m;
}

// Throw std::invalid_argument unless n, k >= 1 and, for quantised types, k is a multiple of kQuantBlock.
int64_t panel_bytes(WeightType type, int64_t k);
int64_t packed_bytes(WeightType type, int64_t n, int64_t k);

}  // namespace fastserve
