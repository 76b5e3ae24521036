// The native op table: one plain Args struct per op, and the table of functions that an ISA fills.
//
// Kernels know no framework: raw pointers, sizes and strides (in elements). Activations are fp32, rows are
// contiguous, a row stride is named ld*. `rows` is filled when a program is replayed, from the step: it is
// the number of tokens T or of sampled rows S. Every op is called by all threads of a team at once and
// divides its work by worker.thread_idx; it returns when this thread's part is done. The caller puts a
// barrier between ops; an op whose own phases depend on each other calls team_barrier itself.
//
// Dimensions: T tokens, S sampled rows, D hidden, F intermediate, H query heads, K KV heads, E head dim,
// V vocabulary, B blocks, P = kBlockSize keys per KV block; M, N, K in matmuls.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastserve {

class Team;      // csrc/cpu/threads.h
class Exchange;  // csrc/ring/exchange.h: how the ranks of a group swap data; null or size 1: alone

struct Worker {
    Team* team;
    int32_t thread_idx;
    int32_t num_threads;
};

// Waits until every thread of the worker's team has come here.
void team_barrier(const Worker& worker);

constexpr int32_t kBlockSize = 16;       // P: keys per KV block = lanes of one vector of scores
constexpr int32_t kPartitionSize = 256;  // keys per attention partition, at absolute positions
constexpr int32_t kMaxHeadDim = 256;     // largest E that the kernels have room for
constexpr int32_t kPanel = 16;           // output columns interleaved in a packed weight
constexpr int32_t kQuantBlock = 32;      // weights (along K) that share a scale

// A weight matrix [N, K], packed. Panels of 16 columns (N padded with zeros), each panel contiguous and read
// strictly in sequence; lane = column. Within a panel, along K:
//   f32   [K][16] float                          f16  [K][16] half
//   bf16  [ceil(K/2)][16][2] bfloat16 (odd K padded with zero): the operand of vdpbf16ps
//   q8    blocks of 32: 16 half scales d, then 8 groups of 4 k: [8][16][4] u8;  w = d * (u - 128)
//   q4    blocks of 32: 16 half d, then [4][16][4] bytes; low nibbles are k groups 0-3 (k = 4 * group + i),
//   high
//         nibbles groups 4-7;  w = d * (u - 8)
//   q4m   as q4 with 16 half minima m behind the scales;  w = d * u + m
enum class WeightType : int32_t { f32, f16, bf16, q8, q4, q4m };

struct PackedWeight {
    const uint8_t* data;  // 64-byte aligned
    WeightType type;
    int32_t n;
    int32_t k;
    int64_t panel_bytes;
};

// Where an op writes its result as the matmul that reads it multiplies it: integer codes for quantised
// weights, bfloat16 for bf16. The matmul is `prepared` then, and has neither a pass nor a barrier for it.
struct MatmulOperand {
    void* data = nullptr;  // that matmul's scratch; null: nothing is written
    WeightType type = WeightType::f32;
    int32_t activation_bits = 14;
    int32_t copy_rows = 0;  // up to so many, each thread writes a copy of its own: see operand_copy_bytes
};

// out[T, D] = table[token_ids]: rows in the file's own layout (GGUF type id), dequantised.
struct EmbedArgs {
    const int32_t* token_ids;
    const uint8_t* table;
    int32_t gguf_type;
    int64_t row_bytes;
    int32_t rows, d;
    float* out;
    int64_t ldo;
};

// residual += x (skipped when x is null); out = residual / sqrt(mean(residual^2) + eps) * weight.
struct RmsNormArgs {
    const float* x;  // [rows, d]; null: plain rms_norm of `residual`, which is then only read
    int64_t ldx;
    float* residual;
    int64_t ldr;
    const float* weight;  // [d]
    float eps;
    int32_t rows, d;
    float* out;  // null: the operand alone
    int64_t ldo;
    MatmulOperand operand = {};
};

enum class Epilogue : int32_t { none, silu_mul };

// y[M, N] = x[M, K] w^T + bias. Quantised weights: x is quantised to 14 bits per 32; bf16: x is rounded to
// bf16. silu_mul: w is [gate | up], y[M, N / 2] = silu(x gate^T) * x up^T, without a bias; N / 2 is a
// multiple of kQuantBlock.
struct MatmulArgs {
    const float* x;
    int64_t ldx;
    PackedWeight w;
    int32_t rows;
    float* y;  // with an operand or a norm behind it: may be null
    int64_t ldy;
    void* scratch;                 // matmul_scratch_bytes(type, rows, k), shared by the team
    int32_t activation_bits = 14;  // of the codes that quantised weights are multiplied with: 14 or 8
    bool prepared = false;         // scratch holds x, written by the op that made it; x itself is not read
    int32_t copy_rows = 0;         // as that op's operand has it
    const float* bias = nullptr;   // [N], or null
    Epilogue epilogue = Epilogue::none;
    MatmulOperand operand = {};  // of y, with silu_mul
};

// In place on q [rows, H * E] and k [rows, K * E]: pairs (2i, 2i + 1) of a head turn by position *
// inv_freq[i].
struct RotaryArgs {
    float* q;
    int64_t ldq;
    float* k;
    int64_t ldk;
    const int32_t* positions;  // [rows]
    const float* inv_freq;     // [rotary_dim / 2]
    int32_t rows, num_heads, num_kv_heads, head_dim, rotary_dim;
};

enum class KvType : int32_t { f32, bf16, int8 };

// KV blocks of one layer, lane = key in K:
//   f32   K [B, K, E, P], V [B, K, P, E]
//   bf16  K [B, K, E/2, P, 2], V [B, K, P, E]
//   int8  K [B, K] of {[E/4, P, 4] u8, then [2, P] bfloat16: the scales of the keys and of the values},
//         V [B, K, P/4, E, 4] u8; E a multiple of 4. Values are scale * (u - 128), keys so too, once their
//         dimensions are mixed (cpu/hadamard.h)
struct KvCache {
    void* k;
    void* v;
    KvType type;
    int32_t num_blocks, num_kv_heads, head_dim;
};

constexpr int64_t kKvScaleBytes = 2 * 2 * kBlockSize;  // int8: a bfloat16 for each key and each value

// Of one KV head's keys and values in a block. Kernels call them: an object of one ISA must not bring a copy.
[[gnu::always_inline]] constexpr int64_t key_block_bytes(KvType type, int64_t head_dim) {
    const int64_t num_values = kBlockSize * head_dim;
    switch (type) {
        case KvType::f32:
            return 4 * num_values;
        case KvType::bf16:
            return 2 * num_values;
        default:
            return num_values + kKvScaleBytes;
    }
}
[[gnu::always_inline]] constexpr int64_t value_block_bytes(KvType type, int64_t head_dim) {
    return type == KvType::int8 ? kBlockSize * head_dim : key_block_bytes(type, head_dim);
}

// Which KV blocks a row reads: position p of row t lies in block tables[row_slot[t] * max_blocks + p / P].
struct KvIndex {
    const int32_t* row_slot;   // [rows]
    const int32_t* positions;  // [rows]
    const int32_t* tables;     // [num_slots, max_blocks]
    int32_t max_blocks;
};

struct StoreKvArgs {
    const float* k;  // [rows, K * E]
    int64_t ldk;
    const float* v;
    int64_t ldv;
    KvCache cache;
    KvIndex index;
    int32_t rows;
};

// rotary, then store_kv of the k that it turned: what a recorder makes of the two.
struct RotaryStoreKvArgs {
    RotaryArgs rotary;
    StoreKvArgs store;
};

// out[t, h] = softmax(q[t, h] . keys[0..positions[t]] * scale) values; query head h reads KV head
// kv_of_head[h].
struct PagedAttentionArgs {
    const float* q;
    int64_t ldq;
    KvCache cache;
    KvIndex index;
    const int32_t* kv_of_head;  // [H]
    int32_t rows, num_heads;
    float scale;
    int32_t window;  // keys a query sees, itself included; 0: all
    float* out;      // null: the operand alone
    int64_t ldo;
    MatmulOperand operand = {};  // only where head_dim is a multiple of kQuantBlock
    float* parts = nullptr;      // attention_parts_bytes; null: threads share query heads alone
};

// The partitions of a slot of so many blocks.
[[gnu::always_inline]] constexpr int32_t max_partitions(int32_t max_blocks) {
    return (max_blocks * kBlockSize + kPartitionSize - 1) / kPartitionSize;
}

// Of what a query found in one partition: its values, padded to whole vectors, and two numbers.
[[gnu::always_inline]] constexpr int64_t partition_part_floats(int64_t head_dim) {
    return (head_dim + 15) / 16 * 16 + 16;
}

// What paged_attention needs to share the partitions of a long row among threads.
int64_t attention_parts_bytes(int32_t num_heads, int32_t head_dim, int32_t max_blocks);

// out[rows, F] = silu(x[:, :F]) * x[:, F:].
struct SiluMulArgs {
    const float* x;
    int64_t ldx;
    int32_t rows, f;
    float* out;  // null: the operand alone
    int64_t ldo;
    MatmulOperand operand = {};
};

// out[s] = x[sample_rows[s]].
struct SelectRowsArgs {
    const float* x;
    int64_t ldx;
    const int32_t* sample_rows;
    int32_t rows, d;
    float* out;  // null: the operand alone
    int64_t ldo;
    MatmulOperand operand = {};
};

// out += over ranks of x, in place; csrc/ring/exchange.h says in which order.
struct AllReduceArgs {
    float* x;
    int64_t ldx;
    int32_t rows, d;
    Exchange* exchange;
};

// y[M, N] = sum over ranks of x[M, K_rank] w_rank^T; finished tiles enter the exchange while the next are
// computed. With a norm, the sum goes straight into its residual, and y and the norm's operand get the
// normalised rows.
struct MatmulAllReduceArgs {
    MatmulArgs matmul;
    Exchange* exchange;
    RmsNormArgs norm = {};  // without weight: none. x, rows, d and out are not used
};

// An element of a collective's buffer, and what is done with those of all ranks.
enum class DataType : int32_t { f32, f64, f16, bf16, u8, s8, s16, s32, s64 };
enum class ReduceOp : int32_t { sum, product, min, max, bit_and, bit_or, bit_xor };

constexpr size_t size_of(DataType type) {
    switch (type) {
        case DataType::f64:
        case DataType::s64:
            return 8;
        case DataType::f32:
        case DataType::s32:
            return 4;
        case DataType::f16:
        case DataType::bf16:
        case DataType::s16:
            return 2;
        default:
            return 1;
    }
}

// out[i] = parts[0][i] op parts[1][i] op ..., in that order; 16-bit floats are summed in fp32 and rounded
// once. Every one of `outs` gets all of it, and may be one of the parts. Integers wrap; bit_* are for
// integers.
struct ReduceArgs {
    const void* const* parts;  // [num_parts], each [count] of `type`
    int32_t num_parts;
    int64_t count;
    DataType type;
    ReduceOp op;
    bool average;  // divides by num_parts; integers towards zero
    void* const* outs;
    int32_t num_outs;
};

// Plain vector loads and stores: memcpy's `rep movsb`, which glibc takes from 2 KB on, moves lines of another
// core at 2 GB/s on Zen 3, a tenth of these.
struct CopyArgs {
    void* to;  // aligned to 64 where it is streamed
    const void* from;
    int64_t bytes;
    int64_t stream_bytes;  // from here on stores go past the caches
};

// Floats as they cross a slow link: blocks of 64 with a scale of their own, 68 bytes instead of 256. A value
// comes back with an error of at most max |block| / 254; a block that holds NaN or infinity comes back as
// NaN.
struct WireBlock {
    static constexpr int32_t kValues = 64;
    float scale;
    int8_t codes[kValues];  // -127..127, times the scale
};
static_assert(sizeof(WireBlock) == 68);

struct CompressArgs {
    const float* from;  // [count]
    int64_t count;
    WireBlock* to;  // [ceil(count / 64)]
};

struct ExpandArgs {
    const WireBlock* from;
    int64_t count;
    float* to;  // [count]
};

// What a request asked of sampling; lives in its slot.
struct SamplingState {
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;         // 0: all
    int32_t num_logprobs;  // -1: none; 0: of the sampled token alone
    uint64_t seed;
    int32_t min_tokens;       // stop_ids are banned before this output index
    const int32_t* stop_ids;  // [num_stop_ids]
    int32_t num_stop_ids;
    const int32_t* bias_ids;  // [num_bias], ascending
    const float* bias_values;
    int32_t num_bias;
    const int32_t* counted_ids;     // [num_counted] distinct tokens of prompt and output; kept only where a
    const int32_t* counted_output;  //   penalty is on: how often each came in the output
    int32_t num_counted;
};

constexpr int32_t kMaxTopLogprobs = 20;

struct SampleRow {
    const SamplingState* state;
    int32_t output_idx;  // keys the random draw, with the seed and the token id
    int32_t target;      // >= 0: draw nothing, report this token's logprob (a prompt token being scored)
};

struct SampleOut {
    int32_t token = 0;
    float logprob = 0;  // of the model's own distribution, before penalties and temperature
    int32_t rank = 0;   // 1 = the likeliest token
    int32_t num_top = 0;
    int32_t top_ids[kMaxTopLogprobs] = {};
    float top_logprobs[kMaxTopLogprobs] = {};
};

// Draws a token for each row from logits that are sharded over the vocabulary: this rank's columns are
// [vocab_begin, vocab_begin + n) of V. All ranks end with the same `out`.
struct SampleArgs {
    float* logits;  // [rows, n]
    int64_t ldl;
    int32_t rows, n, vocab_begin, vocab_size;
    const SampleRow* sample_rows;  // [rows]
    Exchange* exchange;
    float* scratch;  // sample_scratch_bytes(num_threads, vocab_size)
    SampleOut* out;  // [rows]
};

// Of a row of k bfloat16 activations that a matmul multiplies: even, and never whole KBs, as the eight rows
// of a tile would then lie in two, with whole pages in one, of the sets of a first-level cache. 32 rows of
// 4096 by 4096 weights: 2.8 ms, and 3.2 without the gap.
[[gnu::always_inline]] constexpr int64_t bf16_operand_stride(int64_t k) {
    const int64_t even = k + k % 2;
    return even % 512 == 0 ? even + 32 : even;
}
int64_t matmul_scratch_bytes(WeightType type, int64_t rows, int64_t k);
// Between the copies of an operand of up to copy_rows rows, one for each thread of a team. What a thread made
// for itself needs no barrier: matmul_all_reduce with a norm, in a group of one, leaves such for matmul.
int64_t operand_copy_bytes(WeightType type, int64_t copy_rows, int64_t k);
int64_t sample_scratch_bytes(int32_t num_threads, int32_t vocab_size);

struct OpTable {
    const char* isa;
    void (*embed)(const EmbedArgs&, const Worker&);
    void (*rms_norm)(const RmsNormArgs&, const Worker&);
    void (*matmul)(const MatmulArgs&, const Worker&);
    void (*rotary)(const RotaryArgs&, const Worker&);
    void (*store_kv)(const StoreKvArgs&, const Worker&);
    void (*rotary_store_kv)(const RotaryStoreKvArgs&, const Worker&);
    void (*paged_attention)(const PagedAttentionArgs&, const Worker&);
    void (*silu_mul)(const SiluMulArgs&, const Worker&);
    void (*select_rows)(const SelectRowsArgs&, const Worker&);
    void (*all_reduce)(const AllReduceArgs&, const Worker&);
    void (*matmul_all_reduce)(const MatmulAllReduceArgs&, const Worker&);
    void (*sample)(const SampleArgs&, const Worker&);
    void (*reduce)(const ReduceArgs&);
    void (*copy)(const CopyArgs&);
    void (*compress)(const CompressArgs&);
    void (*expand)(const ExpandArgs&);
};

// The table of the ISA in use: FASTSERVE_ISA, else the best that this CPU has. Throws std::runtime_error for
// an ISA that is unknown, not built or lacking here.
const OpTable& op_table();

}  // namespace fastserve
