// store_kv of one head.
#pragma once

#include "ops.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

void store_head(const StoreKvArgs& args, int64_t t, int64_t head);

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
