#include "program/kv_type.h"

#include <iterator>
#include <stdexcept>

namespace fastserve {

namespace {
constexpr const char* kNames[] = {"f32", "bf16", "int8"};  // in the order of KvType
}

const char* kv_type_name(KvType type) {
    return kNames[static_cast<int>(type)];
}

KvType find_kv_type(const std::string& name) {
    for (size_t i = 0; i < std::size(kNames); ++i)
        if (name == kNames[i]) return static_cast<KvType>(i);
    throw std::invalid_argument("KV type must be f32, bf16 or int8, got '" + name + "'");
}

}  // namespace fastserve
