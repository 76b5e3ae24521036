// rotary and store_kv in one: who turns a head of k stores it, so there is no barrier between, and the heads
// of a single row are shared out.
#include "cpu/kernels.h"
#include "cpu/rotary.h"
#include "cpu/share.h"
#include "cpu/store_kv.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

void rotary_store_kv(const RotaryStoreKvArgs& args, const Worker& worker) {
    const RotaryArgs& rotary = args.rotary;
    const int64_t num_heads = rotary.num_heads, heads = num_heads + rotary.num_kv_heads;
    const Share share = share_of(rotary.rows * heads, worker);
    Rotation rotation;
    for (int64_t item = share.begin; item < share.end; ++item) {
        const int64_t t = item / heads, head = item % heads;
        if (item == share.begin || head == 0) find_rotation(rotary, t, &rotation);
        if (head < num_heads) {
            turn(rotation, rotary.q + t * rotary.ldq + head * rotary.head_dim);
            continue;
        }
        turn(rotation, rotary.k + t * rotary.ldk + (head - num_heads) * rotary.head_dim);
        store_head(args.store, t, head - num_heads);
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
