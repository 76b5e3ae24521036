// From weights as files and frameworks hold them to packed weights, and back.
#pragma once

#include <cstdint>

#include "ops.h"

namespace fastserve {

// Rows [row_begin, row_end) x columns [col_begin, col_end) of a matrix [N, file_k] in a GGUF file's own
// blocks.
struct WeightSlice {
    uint32_t gguf_type;
    const uint8_t* data;  // of row 0
    int64_t file_k;       // whole blocks, as are the columns
    int64_t row_begin, row_end;
    int64_t col_begin, col_end;
};

// Writes the slice's rows as the output columns that begin at `at`, which need not be a multiple of kPanel:
// several matrices may share one packed weight. Bits are kept where the type is packed_type(gguf_type); F32,
// F16 and BF16 go into any type, as in pack_f32. Calls for different rows of one weight may run at once.
// Throws std::invalid_argument naming the argument that is wrong.
void pack_slice(const WeightSlice& slice, const PackedWeight& weight, uint8_t* data, int64_t at);

// Packs x [n, k], rounding to nearest even, or quantising each 32 weights:
//   q8   d = max |w| / 127
//   q4   d = the weight of the largest magnitude / -8, which so gets code 0, the one without an opposite
//   q4m  m = min w, d = (max w - m) / 15
void pack_f32(const float* x, int64_t ldx, const PackedWeight& weight, uint8_t* data);

// What the packed weight means: out [n, k].
void unpack(const PackedWeight& weight, float* out);

// The k weights of one row of a GGUF tensor; k in whole blocks.
void dequantise_row(uint32_t gguf_type, const uint8_t* row, int64_t k, float* out);

}  // namespace fastserve
