// What rms_norm and the ops that end in a norm share.
#pragma once

#include "ops.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

// rms_norm of rows [row_begin, row_end) of args, by the whole team.
void norm_rows(const RmsNormArgs& args, int32_t row_begin, int32_t row_end, const Worker& worker);

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
