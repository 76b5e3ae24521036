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
[[gnu::always_inline]] inline void turn(const Rotation& rotation, float* x) {
    const float *sines = rotation.sines, *cosines = rotation.cosines;
    for (int32_t i = 0; i < rotation.num_pairs; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosines[i] - b * sines[i];
        x[2 * i + 1] = a * sines[i] + b * cosines[i];
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
