// Buffers of any type as bytes: an address in one, and a plain copy.
#pragma once

#include <cstdint>

#include "ops.h"

namespace fastserve {

inline const uint8_t* at(const void* base, int64_t offset) {
    return static_cast<const uint8_t*>(base) + offset;
}

inline uint8_t* at(void* base, int64_t offset) {
    return static_cast<uint8_t*>(base) + offset;
}

inline void copy(void* to, const void* from, int64_t bytes) {
    if (bytes > 0 && to != from)
        op_table().copy({.to = to, .from = from, .bytes = bytes, .stream_bytes = INT64_MAX});
}

}  // namespace fastserve
