// The rotation of a row, which all its heads share.
#pragma once

#include "ops.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

struct Rotation {
    int32_t num_pairs;
    float sines[kMaxHeadDim / 2], cosines[kMaxHeadDim / 2];
};

// Of row t.
void find_rotation(const RotaryArgs& args, int64_t t, Rotation* rotation);
// x [E], in place.
void turn(const Rotation& rotation, float* x);

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
