// Phase 1 of a matmul: activations in the number format that the weights ask for.
#include "cpu/matmul.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {
namespace {

struct Range {
    int64_t begin, end;
};

Range part_of(int64_t total, const Worker& worker) {
    return {total * worker.thread_idx / worker.num_threads,
            total * (worker.thread_idx + 1) / worker.num_threads};
}

// The limits matter only for denormal scales, which are coarse.
VecI to_codes(Vec quotients, float limit) {
    return to_int(min(splat(limit), max(splat(-limit), quotients)));
}

void store_digits(QuantisedBlock& to, int at, VecI codes) {
    const VecI high = shift_right_signed<kDigitBits>(add(codes, splat(int32_t{1 << (kDigitBits - 1)})));
    store_low8(to.high + at, high);
    store_low8(to.low + at, sub(codes, shift_left<kDigitBits>(high)));
}

struct Codes {
    VecI first, second;
    float scale;
    int32_t base;
};

// Codes up to max_code. offset: what the dot products take from the codes of q8 weights by themselves.
Codes quantise_block(const float* x, WeightType type, int32_t max_code, int32_t offset) {
    // As integers, magnitudes are ordered like floats, and NaN is above all: it ends up in the scale.
    const VecI magnitudes = max(as_int(abs(load(x))), as_int(abs(load(x + kLanes))));
    const auto limit = static_cast<float>(max_code);
    Codes codes;
    codes.scale = __builtin_bit_cast(float, reduce_max(magnitudes)) / limit;
    const Vec divisor = splat(codes.scale == 0 ? 1.0f : codes.scale);
    codes.first = to_codes(div(load(x), divisor), limit);
    codes.second = to_codes(div(load(x + kLanes), divisor), limit);
    const int32_t sum = reduce_add(add(codes.first, codes.second));
    if (type == WeightType::q4m)
        codes.base = __builtin_bit_cast(int32_t, codes.scale* static_cast<float>(sum));
    else
        codes.base = sum * (type == WeightType::q8 ? offset - 128 : -8);
    return codes;
}

void store_codes(QuantisedBlock& to, const Codes& codes) {
    store_digits(to, 0, codes.first);
    store_digits(to, kLanes, codes.second);
    to.scale = codes.scale;
    to.base = codes.base;
}

void store_codes(WideBlock& to, const Codes& codes) {
    uint64_t fours[kQuantBlock / 4];
    store_low16(reinterpret_cast<uint16_t*>(fours), codes.first);
    store_low16(reinterpret_cast<uint16_t*>(fours + kLanes / 4), codes.second);
    for (uint64_t& four : fours)
        four = (four & 0xffff00000000ffff) | (four & 0xffff0000) << 16 | (four >> 16 & 0xffff0000);
    __builtin_memcpy(to.codes, fours, sizeof fours);
    to.scale = codes.scale;
    to.base = codes.base;
}

// Codes of one digit.
struct ByteBlock : QuantisedBlock {};

void store_codes(ByteBlock& to, const Codes& codes) {
    store_low8(to.high, codes.first);
    store_low8(to.high + kLanes, codes.second);
    to.scale = codes.scale;
    to.base = codes.base;
}

template <class Block, int32_t kOffset>
void quantise(const MatmulArgs& args, const Worker& worker) {
    const int32_t max_code = args.activation_bits == 8 ? kMaxByteCode : kMaxCode;
    const int64_t blocks = args.w.k / kQuantBlock;
    auto* const to = static_cast<Block*>(args.scratch);
    const Range range = part_of(args.rows * blocks, worker);
    for (int64_t i = range.begin; i < range.end; ++i)
        store_codes(to[i], quantise_block(args.x + i / blocks * args.ldx + i % blocks * kQuantBlock,
                                          args.w.type, max_code, kOffset));
}

// Rows are padded with zero to an even number of weights.
void round_bf16(const MatmulArgs& args, const Worker& worker) {
    const int64_t k = args.w.k, ld = (k + 1) / 2 * 2, vectors = (k + kLanes - 1) / kLanes;
    const Range range = part_of(args.rows * vectors, worker);
    for (int64_t i = range.begin; i < range.end; ++i) {
        const int64_t row = i / vectors, column = i % vectors * kLanes;
        const float* x = args.x + row * args.ldx + column;
        uint16_t* to = static_cast<uint16_t*>(args.scratch) + row * ld + column;
        if (column + kLanes <= k) {
            store_bf16(to, load(x));
            continue;
        }
        for (int64_t j = 0; j < ld - column; ++j) to[j] = column + j < k ? to_bf16(x[j]) : uint16_t{0};
    }
}

}  // namespace

void matmul_prepare(const MatmulArgs& args, const Worker& worker) {
    switch (args.w.type) {
        case WeightType::f32:
        case WeightType::f16:
            return;
        case WeightType::bf16:
            round_bf16(args, worker);
            break;
        case WeightType::q8:
        case WeightType::q4:
        case WeightType::q4m:
            if (is_wide(args))
                quantise<WideBlock, 0>(args, worker);
            else if (num_digits(args) == 2)
                quantise<QuantisedBlock, kOffsetU8>(args, worker);
            else
                quantise<ByteBlock, kOffsetU8>(args, worker);
            break;
    }
    team_barrier(worker);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
