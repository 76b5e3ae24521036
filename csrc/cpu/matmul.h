// y[M, N] = x[M, K] w^T in parts: preparing the activations, choosing tiles, dividing the work, computing a
// tile.
//
// Words: a panel is 16 output columns of a packed weight, a tile R rows x P panels of accumulators in
// registers, a chunk a stretch of K whose weights, for the panels of a tile, stay in L1 while all rows stream
// past them.
//
// Same bits: an output element is a chain of fused multiply-adds over K in ascending order, starting at 0,
// whatever the tile, the chunk and the thread: a chain that is cut at a chunk passes through y, which loses
// nothing. For quantised weights a link of the chain is a block of 32: the products of integer codes are
// summed exactly, and one fma adds sum * (scale of weights * scale of activations).
#pragma once

#include "ops.h"

namespace fastserve::FASTSERVE_ISA_NAMESPACE {

struct MatmulConfig {
    int max_rows;    // R of the widest tile
    int max_panels;  // P
    int chunk;       // weights along K; 0: all of K at once
};

struct MatmulPart {
    int row_begin, row_end, panel_begin, panel_end;
};

MatmulConfig choose_matmul(int m, WeightType type);

// The digits of the activations' codes: 1 or 2.
int num_digits(const MatmulArgs& args);

// Whether activations go into WideBlocks, for quantised weights that are unpacked a chunk at a time.
bool is_wide(const MatmulArgs& args);

// What one of num_threads computes of `rows` x `panels`: panels are divided first, rows too where that leaves
// fewer tiles to the busiest thread.
MatmulPart divide_matmul(int rows, int panels, int thread_idx, int num_threads);

// Fills args.scratch from args.x: nothing for f32 and f16, bfloat16 for bf16, integer codes for quantised
// weights. Called by the whole team; ends with a barrier where something was written.
void matmul_prepare(const MatmulArgs& args, const Worker& worker);

// y[row, column] for the rows and panels given; y and ldy stand for args.y and args.ldy, y is of row 0,
// column 0. Columns past args.w.n are not written. To be called after matmul_prepare, by any thread.
void matmul_tile(const MatmulArgs& args, int row_begin, int row_end, int panel_begin, int panel_end, float* y,
                 int64_t ldy);

// matmul_tile for one kind of weight: matmul_plain.cpp (f32, f16, bf16) and matmul_quantised.cpp (q8, q4,
// q4m).
void matmul_tile_plain(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy);
void matmul_tile_quantised(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy);

// A block of 32 quantised activations; args.scratch holds them as [rows, k / 32].
//
// A code is the nearest even of x / scale, in 14 bits: two digits of base 128, code = 128 * high + low, each
// multiplied by 8-bit dot products of its own. One digit would do for a layer, not for a model: the
// activations of language models have few channels that are far larger than their neighbours, which 8 bits
// then leave a handful of codes, and every rounding that falls the other way (another order of an
// all-reduce) moves the logits. SmolLM2's logits, largest relative error over positions: 0.15 with one digit,
// 0.013 with two, nearly all of it from keys and values in bf16. Digits of 7 bits instead of 8 lose nothing
// that shows, and keep a pair of products (2 * 255 * 64) within 16 bits, which AVX2 multiplies exactly then.
//
// Codes of 8 bits may be asked for all the same (MatmulArgs::activation_bits), one digit where the ISA
// multiplies such: the precision that other engines offer, in little more than half the time where products
// decide.
constexpr int32_t kDigitBits = 7;
constexpr int32_t kMaxCode = 8127;  // 128 * 63 + 63
constexpr int32_t kMaxByteCode = 127;
struct QuantisedBlock {
    int8_t high[kQuantBlock];  // -63..63; one digit: the code, -127..127
    int8_t low[kQuantBlock];   // -64..63; one digit: anything
    float scale;               // max |x| / kMaxCode or kMaxByteCode; NaN if the block holds a NaN
    int32_t base;  // q8, q4: kOffsetU8 - 128 or -8 times the sum of the codes, a term of the integer dot
                   //   product; q4m: the bits of the float scale * sum, which multiplies the minimum
};

// The same codes for many rows, whole: products with codes of 16 bits take as many instructions as those of
// two digits with bytes, and no more behind them. The integer sums, and so all bits, are those of the digits.
struct WideBlock {
    int16_t codes[kQuantBlock];  // of each four the first, the third, the second, the fourth: as bytes unpack
    float scale;
    int32_t base;
};
static_assert(sizeof(WideBlock) == sizeof(QuantisedBlock));

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
