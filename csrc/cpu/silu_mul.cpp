// silu_mul: the activation of a gated MLP, out = x0 / (1 + e^-x0) * x1.
#include "cpu/silu_mul.h"

#include "cpu/kernels.h"
#include "cpu/matmul_operand.h"
#include "cpu/share.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

// Shared by threads: 8 vectors, small enough that one decode row is divided among the whole team.
constexpr int32_t kColumns = 128;
static_assert(kColumns % kQuantBlock == 0);

}  // namespace

void silu_mul(const SiluMulArgs& args, const Worker& worker) {
    const OperandWriter operand(args.operand, args.rows, args.f);
    share_columns(args.rows, args.f, kColumns, worker, [&](int64_t t, int32_t begin, int32_t end) {
        for (int32_t i = begin; i < end; i += kColumns) {
            const float* gate = args.x + t * args.ldx + i;
            const int32_t n = end - i < kColumns ? end - i : kColumns;
            float columns[kColumns];
            float* out = args.out ? args.out + t * args.ldo + i : columns;
            silu_mul_columns(gate, gate + args.f, n, out);
            operand.write(t, i, i + n, out);
        }
    });
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
