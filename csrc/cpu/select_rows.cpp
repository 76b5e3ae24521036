// select_rows: copies the rows whose logits are wanted, as floats and as what the matmul behind multiplies.
#include "cpu/kernels.h"
#include "cpu/matmul_operand.h"
#include "cpu/share.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

void select_rows(const SelectRowsArgs& args, const Worker& worker) {
    const OperandWriter operand(args.operand, args.rows, args.d);
    share_columns(args.rows, args.d, kQuantBlock, worker, [&](int64_t s, int32_t begin, int32_t end) {
        const float* const x = args.x + args.sample_rows[s] * args.ldx + begin;
        if (args.out)
            __builtin_memcpy(args.out + s * args.ldo + begin, x,
                             sizeof(float) * static_cast<size_t>(end - begin));
        operand.write(s, begin, end, x);
    });
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
