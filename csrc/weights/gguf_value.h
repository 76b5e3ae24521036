// One metadata value of a GGUF file, as a view: it holds no copy of the file's bytes and lives no longer than
// they.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

namespace fastserve {

// The ids of the file format.
// clang-format off
enum class GgufValueType : uint32_t {
    u8 = 0, i8 = 1, u16 = 2, i16 = 3, u32 = 4, i32 = 5, f32 = 6,
    boolean = 7, string = 8, array = 9, u64 = 10, i64 = 11, f64 = 12,
};
// clang-format on

using GgufScalar = std::variant<bool, int64_t, uint64_t, double, std::string_view>;

struct GgufValue {
    GgufValueType type;                     // of the value; `array` for an array
    GgufValueType element_type;             // of its elements; a scalar is its own only element
    uint64_t count;                         // elements; 1 for a scalar
    std::span<const uint8_t> bytes;         // elements of fixed size, one after the other (unaligned)
    std::vector<std::string_view> strings;  // elements that are strings

    bool is_array() const { return type == GgufValueType::array; }

    // Element `idx` < count. Strings are bytes: nothing says that they are UTF-8.
    GgufScalar at(uint64_t idx) const;
};

struct GgufPair {
    std::string_view key;
    GgufValue value;
};

// Bytes of one element; 0 for strings, arrays and unknown ids.
uint32_t gguf_value_bytes(GgufValueType type);

}  // namespace fastserve
