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

#include "cpu/matmul_operand.h"
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

// Rows that meet all panels of a part before the next ones do: they stay in L2, and weights are read again
// for so many products that it does not show (512 rows of 4096 weights, bf16: 103 G products/s at once, 107
// so).
constexpr int kBlockRows = 128;

constexpr int kMaxChunk = 2048;  // of bf16 and quantised weights

MatmulConfig choose_matmul(int m, WeightType type);

// What one of num_threads computes of `rows` x `panels`: rows are divided where all get enough of them or
// where that leaves fewer tiles to the busiest thread, then panels.
MatmulPart divide_matmul(int rows, int panels, int thread_idx, int num_threads);

// Fills args.scratch from args.x, unless its producer has. Called by the whole team; ends with a barrier
// where something was written.
void matmul_prepare(const MatmulArgs& args, const Worker& worker);

// y[row, column] for the rows and panels given; y and ldy stand for args.y and args.ldy, y is of row 0,
// column 0. Columns past args.w.n are not written. To be called after matmul_prepare, by any thread.
void matmul_tile(const MatmulArgs& args, int row_begin, int row_end, int panel_begin, int panel_end, float* y,
                 int64_t ldy);

// The product with the epilogue silu_mul, by the whole team. To be called after matmul_prepare.
void matmul_silu_mul(const MatmulArgs& args, const Worker& worker);

// matmul_tile for one kind of weight: matmul_plain.cpp (f32, f16, bf16) and matmul_quantised.cpp (q8, q4,
// q4m).
void matmul_tile_plain(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy);
void matmul_tile_quantised(const MatmulArgs& args, const MatmulPart& part, float* y, int64_t ldy);

}  // namespace fastserve::FASTSERVE_ISA_NAMESPACE
