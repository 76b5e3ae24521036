// rotary: turns pairs (2i, 2i + 1) of each head by position * inv_freq[i].
//
// The angle is formed and reduced in double, so a position of a million is as exact as position 1 (a float
// angle of 1e6 is off by 0.03), and its sine and cosine are plain arithmetic of ours: the same bits on every
// ISA and with every libm. They are computed once per row and shared by all heads. The loops have no branches
// and no calls: the compiler vectorises them.
#include "cpu/rotary.h"

#include "cpu/kernels.h"
#include "cpu/share.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

// sin and cos of |angle| < 2^31 within 2 ulp (of float): r = angle - n pi/2 with |r| <= pi/4 and pi/2 in two
// parts, the polynomials of Cephes' sinf and cosf, and the quadrant n mod 4.
[[gnu::always_inline]] inline void sin_cos(double angle, float* sin_out, float* cos_out) {
    constexpr double kTwoOverPi = 0.63661977236758134308;
    constexpr double kHalfPiHigh = 1.57079632679489655800;
    constexpr double kHalfPiLow = 6.12323399573676603587e-17;
    constexpr double kRound =
        6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, in the low bits
    const double shifted = angle * kTwoOverPi + kRound;
    uint64_t bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    const uint32_t quadrant = static_cast<uint32_t>(bits);
    const double n = shifted - kRound;
    const float r = static_cast<float>((angle - n * kHalfPiHigh) - n * kHalfPiLow);
    const float z = r * r;
    const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
    const float c =
        ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z +
        1.0f;
    const float sine = quadrant & 1 ? c : s;
    const float cosine = quadrant & 1 ? s : c;
    *sin_out = quadrant & 2 ? -sine : sine;
    *cos_out = (quadrant + 1) & 2 ? -cosine : cosine;
}

}  // namespace

void find_rotation(const RotaryArgs& args, int64_t t, Rotation* rotation) {
    const double position = args.positions[t];
    rotation->num_pairs = args.rotary_dim / 2;
    for (int32_t i = 0; i < rotation->num_pairs; ++i)
        sin_cos(position * static_cast<double>(args.inv_freq[i]), &rotation->sines[i], &rotation->cosines[i]);
}

void rotary(const RotaryArgs& args, const Worker& worker) {
    const Share share = share_of(args.rows, worker);
    Rotation rotation;
    for (int64_t t = share.begin; t < share.end; ++t) {
        find_rotation(args, t, &rotation);
        for (int32_t h = 0; h < args.num_heads; ++h)
            turn(rotation, args.q + t * args.ldq + h * args.head_dim);
        for (int32_t h = 0; h < args.num_kv_heads; ++h)
            turn(rotation, args.k + t * args.ldk + h * args.head_dim);
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
