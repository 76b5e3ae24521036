#include "weights/gguf_value.h"

#include <cstring>
#include <stdexcept>

namespace fastserve {
namespace {

template <typename Number>
Number load(const uint8_t* bytes) {
    Number value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

}  // namespace

uint32_t gguf_value_bytes(GgufValueType type) {
    switch (type) {
        case GgufValueType::u8:
        case GgufValueType::i8:
        case GgufValueType::boolean:
            return 1;
        case GgufValueType::u16:
        case GgufValueType::i16:
            return 2;
        case GgufValueType::u32:
        case GgufValueType::i32:
        case GgufValueType::f32:
            return 4;
        case GgufValueType::u64:
        case GgufValueType::i64:
        case GgufValueType::f64:
            return 8;
        case GgufValueType::string:
        case GgufValueType::array:
            break;
    }
    return 0;
}

GgufScalar GgufValue::at(uint64_t idx) const {
    if (idx >= count) throw std::out_of_range("GgufValue::at");
    if (element_type == GgufValueType::string) return strings[idx];
    const uint8_t* element = bytes.data() + idx * gguf_value_bytes(element_type);
    switch (element_type) {
        case GgufValueType::u8:
            return uint64_t{*element};
        case GgufValueType::i8:
            return int64_t{load<int8_t>(element)};
        case GgufValueType::u16:
            return uint64_t{load<uint16_t>(element)};
        case GgufValueType::i16:
            return int64_t{load<int16_t>(element)};
        case GgufValueType::u32:
            return uint64_t{load<uint32_t>(element)};
        case GgufValueType::i32:
            return int64_t{load<int32_t>(element)};
        case GgufValueType::u64:
            return load<uint64_t>(element);
        case GgufValueType::i64:
            return load<int64_t>(element);
        case GgufValueType::f32:
            return double{load<float>(element)};
        case GgufValueType::f64:
            return load<double>(element);
        case GgufValueType::boolean:
            return *element != 0;
        case GgufValueType::string:
        case GgufValueType::array:
            break;
    }
    throw std::logic_error("GgufValue::at: the parser let an element type through");
}

}  // namespace fastserve
