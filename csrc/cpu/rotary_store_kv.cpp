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
    for (int64_t t = share.begin / heads; t * heads < share.end; ++t) {
        const int64_t begin = share.begin > t * heads ? share.begin - t * heads : 0;
        const int64_t end = share.end < (t + 1) * heads ? share.end - t * heads : heads;
        find_rotation(rotary, t, &rotation);
        for (int64_t h = begin; h < end && h < num_heads; ++h)
            turn(rotation, rotary.q + t * rotary.ldq + h * rotary.head_dim);
        for (int64_t h = begin > num_heads ? begin - num_heads : 0; h < end - num_heads; ++h) {
            turn(rotation, rotary.k + t * rotary.ldk + h * rotary.head_dim);
            store_head(args.store, t, h);
        }
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
