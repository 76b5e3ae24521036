// store_kv: writes the keys and values of new tokens into their KV blocks.
//
// Keys are stored transposed, K [B, K, E, P] or, for bf16, [B, K, E/2, P, 2], so that attention scores 16
// keys with one vector; values are stored as they come, V [B, K, P, E].
#include "cpu/kernels.h"
#include "cpu/share.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

void store_f32(const StoreKvArgs& args, int64_t t, int64_t head, int64_t block, int32_t key) {
    const int64_t e = args.cache.head_dim;
    const int64_t base = (block * args.cache.num_kv_heads + head) * e * kBlockSize;
    const float* k = args.k + t * args.ldk + head * e;
    float* k_block = static_cast<float*>(args.cache.k) + base;
    for (int64_t i = 0; i < e; ++i) k_block[i * kBlockSize + key] = k[i];
    __builtin_memcpy(static_cast<float*>(args.cache.v) + base + key * e, args.v + t * args.ldv + head * e,
                     sizeof(float) * static_cast<size_t>(e));
}

void store_bf16_pairs(const StoreKvArgs& args, int64_t t, int64_t head, int64_t block, int32_t key) {
    const int64_t e = args.cache.head_dim;
    const int64_t base = (block * args.cache.num_kv_heads + head) * e * kBlockSize;
    const float* k = args.k + t * args.ldk + head * e;
    const float* v = args.v + t * args.ldv + head * e;
    uint16_t* k_block = static_cast<uint16_t*>(args.cache.k) + base;
    uint16_t* v_row = static_cast<uint16_t*>(args.cache.v) + base + key * e;
    for (int64_t i = 0; i < e; i += 2) {
        uint16_t* pair = k_block + (i / 2 * kBlockSize + key) * 2;
        pair[0] = to_bf16(k[i]);
        pair[1] = to_bf16(k[i + 1]);
    }
    for (int64_t i = 0; i < e; ++i) v_row[i] = to_bf16(v[i]);
}

}  // namespace

void store_kv(const StoreKvArgs& args, const Worker& worker) {
    const int64_t heads = args.cache.num_kv_heads;
    const Share share = share_of(args.rows * heads, worker);
    for (int64_t item = share.begin; item < share.end; ++item) {
        const int64_t t = item / heads;
        const int32_t position = args.index.positions[t];
        const int64_t slot = args.index.row_slot[t];
        const int64_t block = args.index.tables[slot * args.index.max_blocks + position / kBlockSize];
        if (args.cache.type == KvType::f32)
            store_f32(args, t, item % heads, block, position % kBlockSize);
        else
            store_bf16_pairs(args, t, item % heads, block, position % kBlockSize);
    }
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
