// select_rows: copies the rows whose logits are wanted.
#include "cpu/kernels.h"
#include "cpu/share.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

void select_rows(const SelectRowsArgs& args, const Worker& worker) {
    const Share share = share_of(args.rows, worker);
    for (int64_t s = share.begin; s < share.end; ++s)
        __builtin_memcpy(args.out + s * args.ldo, args.x + args.sample_rows[s] * args.ldx,
                         sizeof(float) * static_cast<size_t>(args.d));
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
