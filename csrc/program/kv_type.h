// What the types of a KV cache are called.
#pragma once

#include <string>

#include "ops.h"

namespace fastserve {

const char* kv_type_name(KvType type);
// Throws std::invalid_argument.
KvType find_kv_type(const std::string& name);

}  // namespace fastserve
