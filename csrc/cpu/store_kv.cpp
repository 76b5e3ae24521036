// store_kv: writes the keys and values of new tokens into their KV blocks.
//
// Keys are stored transposed, K [B, K, E, P] or, for bf16, [B, K, E/2, P, 2], so that attention scores 16
// keys with one vector; values are stored as they come, V [B, K, P, E]. As int8, a key and a value have a
// scale of their own, and four dimensions of a key, and four keys of a value, lie side by side: what one
// instruction multiplies.
#include "cpu/store_kv.h"

#include "cpu/hadamard.h"
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

// Codes u of x [e], e a multiple of 4, where x = (u - 128) * scale about; returns the scale, a bfloat16: NaN
// where x holds NaN or infinity.
uint16_t quantise(const float* x, int32_t e, uint8_t* codes) {
    constexpr float kMaxCode = 127.0f;
    constexpr int32_t kInfinity = 0x7f800000;
    constexpr uint16_t kNan = 0x7fc0;
    const auto load_from = [&](int32_t d) { return d + kLanes <= e ? load(x + d) : load_n(x + d, e - d); };
    VecI largest = zero_i();  // magnitudes are ordered as integers, and NaN is above all
    for (int32_t d = 0; d < e; d += kLanes) largest = max(largest, as_int(abs(load_from(d))));
    const int32_t magnitude = reduce_max(largest);
    if (magnitude >= kInfinity) {
        __builtin_memset(codes, 0, static_cast<size_t>(e));
        return kNan;
    }
    const uint16_t scale = to_bf16(__builtin_bit_cast(float, magnitude) / kMaxCode);
    const Vec divisor = splat(scale == 0 ? 1.0f : from_bf16(scale));
    for (int32_t d = 0; d < e; d += kLanes) {
        // The limits matter only for denormal scales, which are coarse.
        const Vec quotients = min(splat(kMaxCode), max(splat(-kMaxCode), div(load_from(d), divisor)));
        store_low8(reinterpret_cast<int8_t*>(codes + d), add(to_int(quotients), splat(int32_t{128})));
    }
    return scale;
}

void store_int8(const StoreKvArgs& args, int64_t t, int64_t head, int64_t block, int32_t key) {
    const int32_t e = args.cache.head_dim;
    const int64_t head_block = block * args.cache.num_kv_heads + head;
    uint8_t* k_block = static_cast<uint8_t*>(args.cache.k) + head_block * key_block_bytes(KvType::int8, e);
    uint8_t* v_block = static_cast<uint8_t*>(args.cache.v) + head_block * value_block_bytes(KvType::int8, e);
    auto* const scales = reinterpret_cast<uint16_t*>(k_block + e * kBlockSize);
    alignas(64) float mixed[kMaxHeadDim] = {};
    alignas(64) uint8_t codes[kMaxHeadDim];
    mix(args.k + t * args.ldk + head * e, e, mixed);
    scales[key] = quantise(mixed, e, codes);
    for (int32_t i = 0; i < e; i += 4) __builtin_memcpy(k_block + i * kBlockSize + key * 4, codes + i, 4);
    scales[kBlockSize + key] = quantise(args.v + t * args.ldv + head * e, e, codes);
    for (int32_t i = 0; i < e; ++i) v_block[(key / 4 * e + i) * 4 + key % 4] = codes[i];
}

}  // namespace

void store_head(const StoreKvArgs& args, int64_t t, int64_t head) {
    const int32_t position = args.index.positions[t];
    const int64_t slot = args.index.row_slot[t];
    const int64_t block = args.index.tables[slot * args.index.max_blocks + position / kBlockSize];
    switch (args.cache.type) {
        case KvType::f32:
            store_f32(args, t, head, block, position % kBlockSize);
            break;
        case KvType::bf16:
            store_bf16_pairs(args, t, head, block, position % kBlockSize);
            break;
        case KvType::int8:
            store_int8(args, t, head, block, position % kBlockSize);
            break;
    }
}

void store_kv(const StoreKvArgs& args, const Worker& worker) {
    const int64_t heads = args.cache.num_kv_heads;
    const Share share = share_of(args.rows * heads, worker);
    for (int64_t item = share.begin; item < share.end; ++item) store_head(args, item / heads, item % heads);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
