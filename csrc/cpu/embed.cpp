// embed: rows of the embedding table, dequantised from the layout of a GGUF file.
//
// Quantised blocks hold 32 weights behind a half scale d (and a half minimum m): byte j of Q4 holds weight j
// in its low and weight j + 16 in its high nibble. Rows need no alignment: halves are read byte by byte.
#include "cpu/kernels.h"
#include "cpu/share.h"
#include "cpu/simd.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

namespace {

enum GgufType : int32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBf16 = 30 };

uint16_t read_u16(const uint8_t* p) {
    uint16_t value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

void embed_f16(const uint8_t* row, int32_t d, float* out) {
    for (int32_t i = 0; i < d; ++i) out[i] = from_half(read_u16(row + 2 * i));
}

void embed_bf16(const uint8_t* row, int32_t d, float* out) {
    for (int32_t i = 0; i < d; ++i) out[i] = from_bf16(read_u16(row + 2 * i));
}

// w = d * q + m; Q4_0 has no minimum: w = d * (q - 8).
void embed_q4(const uint8_t* row, int32_t d, bool has_minimum, float* out) {
    const int32_t block_bytes = has_minimum ? 20 : 18;
    const int32_t zero_point = has_minimum ? 0 : 8;
    for (int32_t i = 0; i < d; i += kQuantBlock, row += block_bytes) {
        const float scale = from_half(read_u16(row));
        const float minimum = has_minimum ? from_half(read_u16(row + 2)) : 0.0f;
        const uint8_t* q = row + (has_minimum ? 4 : 2);
        for (int32_t j = 0; j < 16; ++j) {
            out[i + j] = scale * static_cast<float>((q[j] & 15) - zero_point) + minimum;
            out[i + j + 16] = scale * static_cast<float>((q[j] >> 4) - zero_point) + minimum;
        }
    }
}

void embed_q8_0(const uint8_t* row, int32_t d, float* out) {
    for (int32_t i = 0; i < d; i += kQuantBlock, row += 2 + kQuantBlock) {
        const float scale = from_half(read_u16(row));
        for (int32_t j = 0; j < kQuantBlock; ++j)
            out[i + j] = scale * static_cast<float>(static_cast<int8_t>(row[2 + j]));
    }
}

void embed_row(int32_t gguf_type, const uint8_t* row, int32_t d, float* out) {
    switch (gguf_type) {
        case kF32:
            __builtin_memcpy(out, row, sizeof(float) * static_cast<size_t>(d));
            return;
        case kF16:
            return embed_f16(row, d, out);
        case kBf16:
            return embed_bf16(row, d, out);
        case kQ4_0:
            return embed_q4(row, d, false, out);
        case kQ4_1:
            return embed_q4(row, d, true, out);
        case kQ8_0:
            return embed_q8_0(row, d, out);
        default:  // the loader refuses other types; NaN would show a hole in that
            for (int32_t i = 0; i < d; ++i) out[i] = __builtin_nanf("");
    }
}

}  // namespace

void embed(const EmbedArgs& args, const Worker& worker) {
    const Share share = share_of(args.rows, worker);
    for (int64_t t = share.begin; t < share.end; ++t)
        embed_row(args.gguf_type, args.table + args.token_ids[t] * args.row_bytes, args.d,
                  args.out + t * args.ldo);
}

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
