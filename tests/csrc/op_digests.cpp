// A digest of what every op gives on every ISA of this machine, one line each: isa, op, case, digest. Two
// machines that print the same digests for a case compute the same bits. The first line is the ISA that is
// chosen.
//
// Inputs come from integers alone: no libm, which has other bits elsewhere.
#include <cinttypes>
#include <exception>
#include <string>

#include "program/kv_type.h"
#include "sample_batch.h"
#include "weights/packed_buffer.h"
#include "weights/packed_layout.h"
#include "weights/packing.h"

namespace {

// FNV-1a.
class Digest {
  public:
    void add(const void* data, size_t num_bytes) {
        for (size_t i = 0; i < num_bytes; ++i)
            value_ = (value_ ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3;
    }
    template <class T>
    void add(const std::vector<T>& values) {
        add(values.data(), values.size() * sizeof(T));
    }
    uint64_t value() const { return value_; }

  private:
    uint64_t value_ = 0xcbf29ce484222325;
};

template <class... Outs>
void print(const OpTable& ops, const char* op, const std::string& name, const Outs&... outs) {
    Digest digest;
    (digest.add(outs), ...);
    std::printf("%s %s %s %016" PRIx64 "\n", ops.isa, op, name.c_str(), digest.value());
}

std::string text(int64_t number) {
    return std::to_string(number);
}

std::vector<uint8_t> random_bytes(size_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<uint8_t> bytes(n);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() >> 24);
    return bytes;
}

// Rows of 96 weights. Without bit 6 of its upper byte, a float, half or bfloat16 is finite.
void embed(const OpTable& ops) {
    constexpr int32_t kD = 96;
    const Ints ids = {4, 0, 4, 2};
    struct Layout {
        int32_t gguf_type;
        size_t block_bytes, num_blocks;
    };
    for (const Layout& layout : {Layout{0, 4, 96}, Layout{1, 2, 96}, Layout{2, 18, 3}, Layout{3, 20, 3},
                                 Layout{8, 34, 3}, Layout{30, 2, 96}}) {
        const size_t row_bytes = layout.block_bytes * layout.num_blocks;
        std::vector<uint8_t> table = random_bytes(5 * row_bytes, 1);
        for (size_t at = 0; at < table.size(); at += layout.block_bytes) {
            table[at + (layout.gguf_type == 0 ? 3 : 1)] &= 0xbf;
            if (layout.gguf_type == 3) table[at + 3] &= 0xbf;
        }
        Floats out(ids.size() * kD);
        run_op(ops.embed,
               EmbedArgs{ids.data(), table.data(), layout.gguf_type, static_cast<int64_t>(row_bytes), 4, kD,
                         out.data(), kD},
               2);
        print(ops, "embed", text(layout.gguf_type), out);
    }
}

void rms_norm(const OpTable& ops) {
    for (const int32_t d : {7, 31, 100, 576}) {
        const size_t size = static_cast<size_t>(5 * d);
        const Floats x = random_floats(size, 1), weight = random_floats(static_cast<size_t>(d), 2);
        Floats residual = random_floats(size, 3), added(size), plain(size);
        run_op(ops.rms_norm,
               RmsNormArgs{x.data(), d, residual.data(), d, weight.data(), 1e-5f, 5, d, added.data(), d}, 2);
        run_op(ops.rms_norm,
               RmsNormArgs{nullptr, 0, residual.data(), d, weight.data(), 1e-5f, 5, d, plain.data(), d}, 2);
        print(ops, "rms_norm", text(d), residual, added, plain);
    }
}

void rotary(const OpTable& ops) {
    constexpr int32_t kE = 64, kHeads = 3, kKvHeads = 2, kRows = 6;
    const Ints positions = {0, 1, 17, 4095, 131071, 1 << 20};
    for (const int32_t rotary_dim : {64, 20}) {
        Floats inv_freq = random_floats(static_cast<size_t>(rotary_dim / 2), 4);
        Floats q = random_floats(kRows * kHeads * kE, 5), k = random_floats(kRows * kKvHeads * kE, 6);
        run_op(ops.rotary,
               RotaryArgs{q.data(), kHeads * kE, k.data(), kKvHeads * kE, positions.data(), inv_freq.data(),
                          kRows, kHeads, kKvHeads, kE, rotary_dim},
               2);
        print(ops, "rotary", text(rotary_dim), q, k);
    }
}

// A chunk of a prompt of 300, rows of a decode and of a window's edge, over keys that store_kv wrote.
void attention(const OpTable& ops, KvType type, int32_t e, int32_t num_heads, int32_t num_kv_heads,
               int32_t window) {
    constexpr int32_t kLength = 300, kMaxBlocks = (kLength + kBlockSize - 1) / kBlockSize;
    const int32_t width = num_kv_heads * e, ldq = num_heads * e;
    const std::string name = std::string(kv_type_name(type)) + "_E" + text(e) + "_H" + text(num_heads) +
                             "_K" + text(num_kv_heads) + "_W" + text(window);
    const int64_t num_head_blocks = kMaxBlocks * num_kv_heads;
    std::vector<uint8_t> k_cache(static_cast<size_t>(num_head_blocks * key_block_bytes(type, e))),
        v_cache(static_cast<size_t>(num_head_blocks * value_block_bytes(type, e)));
    const KvCache cache{k_cache.data(), v_cache.data(), type, kMaxBlocks, num_kv_heads, e};
    Ints table, stored, row_slot(kLength, 0);
    for (int32_t i = 0; i < kMaxBlocks; ++i) table.push_back(kMaxBlocks - 1 - i);
    for (int32_t i = 0; i < kLength; ++i) stored.push_back(i);
    const Floats k = random_floats(static_cast<size_t>(kLength * width), 7),
                 v = random_floats(static_cast<size_t>(kLength * width), 8);
    run_op(ops.store_kv,
           StoreKvArgs{k.data(),
                       width,
                       v.data(),
                       width,
                       cache,
                       {row_slot.data(), stored.data(), table.data(), kMaxBlocks},
                       kLength},
           2);
    print(ops, "store_kv", name, k_cache, v_cache);

    const Ints positions = {0, 15, 16, 252, 253, 254, 255, 256, 257, 258, 259, 299};
    Ints kv_of_head;
    for (int32_t h = 0; h < num_heads; ++h) kv_of_head.push_back(h * num_kv_heads / num_heads);
    const Floats q = random_floats(positions.size() * static_cast<size_t>(ldq), 9, 3.0f);
    Floats out(q.size());
    run_op(ops.paged_attention,
           PagedAttentionArgs{q.data(),
                              ldq,
                              cache,
                              {row_slot.data(), positions.data(), table.data(), kMaxBlocks},
                              kv_of_head.data(),
                              static_cast<int32_t>(positions.size()),
                              num_heads,
                              0.125f,
                              window,
                              out.data(),
                              ldq},
           2);
    print(ops, "paged_attention", name, out);
}

void attentions(const OpTable& ops) {
    for (const KvType type : {KvType::f32, KvType::bf16, KvType::int8}) {
        attention(ops, type, 64, 9, 3, 0);
        attention(ops, type, type == KvType::int8 ? 36 : 34, 3, 1, 37);
        attention(ops, type, 80, 4, 4, 260);
    }
}

void silu_mul(const OpTable& ops) {
    for (const int32_t f : {1, 15, 130, 384}) {
        Floats x = random_floats(static_cast<size_t>(3 * 2 * f), 10, 100.0f), out(static_cast<size_t>(3 * f));
        run_op(ops.silu_mul, SiluMulArgs{x.data(), 2 * f, 3, f, out.data(), f}, 2);
        print(ops, "silu_mul", text(f), out);
    }
}

void select_rows(const OpTable& ops) {
    const Floats x = random_floats(40, 11);
    const Ints wanted = {3, 0, 3};
    Floats out(21);
    run_op(ops.select_rows, SelectRowsArgs{x.data(), 10, wanted.data(), 3, 7, out.data(), 7}, 2);
    print(ops, "select_rows", "7", out);
}

// Rows for every height of tile, and more than share unpacked codes; alone, and as a group of one with a
// norm.
void matmul(const OpTable& ops, WeightType type, int32_t n, int32_t k) {
    const Floats weights = random_floats(static_cast<size_t>(n * k), 12);
    PackedBuffer buffer(type, n, k);
    pack_f32(weights.data(), k, buffer.view(), buffer.data());
    for (const int32_t rows : {1, 2, 4, 7, 33}) {
        const Floats x = random_floats(static_cast<size_t>(rows * k), 13, 4.0f),
                     norm = random_floats(static_cast<size_t>(n), 14);
        std::vector<double> scratch(static_cast<size_t>(matmul_scratch_bytes(type, rows, k)) / 8 + 1);
        const size_t size = static_cast<size_t>(rows * n);
        Floats y(size), residual = random_floats(size, 15), normed(size);
        MatmulArgs args{x.data(), k, buffer.view(), rows, y.data(), n, scratch.data()};
        run_op(ops.matmul, args, 2);
        args.y = normed.data();
        run_op(ops.matmul_all_reduce,
               MatmulAllReduceArgs{
                   args, nullptr, {nullptr, 0, residual.data(), n, norm.data(), 1e-5f, rows, n, nullptr, 0}},
               2);
        const std::string name =
            std::string(weight_type_name(type)) + "_M" + text(rows) + "_N" + text(n) + "_K" + text(k);
        print(ops, "matmul", name, y, residual, normed);
    }
}

// A gated MLP: the first product ends in its activation, written as the second multiplies it.
void gated_matmuls(const OpTable& ops, WeightType type) {
    constexpr int32_t kF = 96, kK = 64;
    PackedBuffer gate_up(type, 2 * kF, kK), down(type, kK, kF);
    pack_f32(random_floats(2 * kF * kK, 20).data(), kK, gate_up.view(), gate_up.data());
    pack_f32(random_floats(kK * kF, 21).data(), kF, down.view(), down.data());
    for (const int32_t rows : {1, 5, 33}) {
        const Floats x = random_floats(static_cast<size_t>(rows * kK), 22, 4.0f);
        std::vector<double> scratch(static_cast<size_t>(rows * kF * 2)), operand(scratch.size());
        Floats y(static_cast<size_t>(rows * kK));
        run_op(ops.matmul,
               MatmulArgs{.x = x.data(),
                          .ldx = kK,
                          .w = gate_up.view(),
                          .rows = rows,
                          .y = nullptr,
                          .ldy = 0,
                          .scratch = scratch.data(),
                          .epilogue = Epilogue::silu_mul,
                          .operand = {operand.data(), type}},
               2);
        run_op(ops.matmul,
               MatmulArgs{.x = nullptr,
                          .ldx = 0,
                          .w = down.view(),
                          .rows = rows,
                          .y = y.data(),
                          .ldy = kK,
                          .scratch = operand.data(),
                          .prepared = true},
               2);
        print(ops, "gated_matmuls", std::string(weight_type_name(type)) + "_M" + text(rows), y);
    }
}

void matmuls(const OpTable& ops) {
    for (const WeightType type : {WeightType::f32, WeightType::f16, WeightType::bf16, WeightType::q8,
                                  WeightType::q4, WeightType::q4m}) {
        matmul(ops, type, 100, 608);
        if (!is_quantised(type)) matmul(ops, type, 20, 75);
        if (matmul_scratch_bytes(type, 1, 32) > 0) gated_matmuls(ops, type);
    }
}

void sample(const OpTable& ops) {
    const Batch batch(2);
    Digest digest;
    for (const SampleOut& out : sample_alone(ops, batch.logits, batch.rows, 2)) {
        digest.add(&out.token, sizeof out.token);
        digest.add(&out.logprob, sizeof out.logprob);
        digest.add(&out.rank, sizeof out.rank);
        digest.add(out.top_ids, sizeof(int32_t) * static_cast<size_t>(out.num_top));
        digest.add(out.top_logprobs, sizeof(float) * static_cast<size_t>(out.num_top));
    }
    std::printf("%s sample all %016" PRIx64 "\n", ops.isa, digest.value());
}

// Three parts, with an end that fills no vector, of bytes that are no NaN in any type.
void reduce(const OpTable& ops) {
    constexpr int64_t kCount = 1003;
    std::vector<uint8_t> parts[3];
    for (uint32_t p = 0; p < 3; ++p) {
        parts[p] = random_bytes(kCount * 8, 16 + p);
        for (uint8_t& byte : parts[p]) byte &= 0xbf;
    }
    const void* const ins[] = {parts[0].data(), parts[1].data(), parts[2].data()};
    for (int32_t type = 0; type <= static_cast<int32_t>(DataType::s64); ++type)
        for (const ReduceOp op : {ReduceOp::sum, ReduceOp::product, ReduceOp::min, ReduceOp::max})
            for (const int32_t num_parts : {2, 3}) {
                const auto data_type = static_cast<DataType>(type);
                std::vector<uint8_t> out(kCount * size_of(data_type));
                void* const outs[] = {out.data()};
                ops.reduce(
                    {ins, num_parts, kCount, data_type, op, num_parts == 3 && op == ReduceOp::sum, outs, 1});
                print(ops, "reduce",
                      std::string("type") + text(type) + "_op" + text(static_cast<int32_t>(op)) + "_parts" +
                          text(num_parts),
                      out);
            }
}

void wire(const OpTable& ops) {
    const Floats x = random_floats(1000, 19);
    std::vector<WireBlock> blocks(16);
    Floats back(x.size()), copied(x.size());
    ops.compress({x.data(), 1000, blocks.data()});
    ops.expand({blocks.data(), 1000, back.data()});
    ops.copy({copied.data(), back.data(), 4000, INT64_MAX});
    print(ops, "wire", "1000", blocks, back, copied);
}

}  // namespace

int main() {
    try {
        std::printf("chosen %s\n", op_table().isa);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    for (const auto& op :
         {embed, rms_norm, rotary, attentions, silu_mul, select_rows, matmuls, sample, reduce, wire})
        for_each_isa(op);
    return 0;
}
