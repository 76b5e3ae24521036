// What norms, activations and attention write for the matmul behind them is what it makes of their floats
// itself: the products have the same bits, for every ISA, type of weight, number of rows and of threads.
#include <cstring>
#include <string>

#include "on_isas.h"
#include "weights/packed_buffer.h"
#include "weights/packed_layout.h"
#include "weights/packing.h"

namespace {

using namespace fastserve;

constexpr int kN = 40;
constexpr int kRows[] = {1, 3, 20};  // 20: as many as share unpacked weights
constexpr int kThreads[] = {1, 2, 5};

struct Format {
    WeightType type;
    int32_t activation_bits = 14;
};
constexpr Format kFormats[] = {{WeightType::bf16},  {WeightType::q8},    {WeightType::q4},
                               {WeightType::q4m},   {WeightType::q8, 8}, {WeightType::q4, 8},
                               {WeightType::q4m, 8}};

PackedBuffer random_weight(WeightType type, int n, int k, uint32_t seed) {
    const Floats values = random_floats(static_cast<size_t>(n) * k, seed);
    PackedBuffer packed(type, n, k);
    pack_f32(values.data(), k, packed.view(), packed.data());
    return packed;
}

// A product of k columns, from floats or from the operand that another op has written.
class Product {
  public:
    Product(const Format& format, int rows, int k)
        : format_(format),
          rows_(rows),
          weight_(random_weight(format.type, kN, k, 7)),
          scratch_(static_cast<size_t>(matmul_scratch_bytes(format.type, rows, k)) / 8 + 1) {}

    MatmulOperand operand() { return {scratch_.data(), format_.type, format_.activation_bits}; }

    Floats prepared(const OpTable& ops) { return multiply(ops, nullptr); }
    Floats from(const OpTable& ops, const Floats& x) { return multiply(ops, x.data()); }

  private:
    Floats multiply(const OpTable& ops, const float* x) {
        Floats y(static_cast<size_t>(rows_) * kN);
        const PackedWeight w = weight_.view();
        run_op(ops.matmul,
               MatmulArgs{.x = x,
                          .ldx = w.k,
                          .w = w,
                          .rows = rows_,
                          .y = y.data(),
                          .ldy = kN,
                          .scratch = scratch_.data(),
                          .activation_bits = format_.activation_bits,
                          .prepared = x == nullptr},
               1);
        return y;
    }

    Format format_;
    int rows_;
    PackedBuffer weight_;
    std::vector<double> scratch_;
};

// produce(operand, out): an op with k columns, run into either or both; the threads are its own.
template <class Produce>
void check_products(const OpTable& ops, const char* name, int k, Produce produce) {
    for (const Format& format : kFormats)
        for (const int rows : kRows) {
            Floats out(static_cast<size_t>(rows) * k);
            produce(rows, MatmulOperand{}, out.data(), 1);
            const Floats expected = Product(format, rows, k).from(ops, out);
            for (const int threads : kThreads) {
                Product alone(format, rows, k), both(format, rows, k);
                Floats again(out.size());
                produce(rows, alone.operand(), nullptr, threads);
                produce(rows, both.operand(), again.data(), threads);
                const bool same = alone.prepared(ops) == expected && both.prepared(ops) == expected;
                if (!same || again != out)
                    std::printf("%s for %s, %d bits: %d rows, %d threads\n", name,
                                weight_type_name(format.type), format.activation_bits, rows, threads);
                CHECK(same);
                CHECK(again == out);
            }
        }
}

void norms(const OpTable& ops) {
    constexpr int kD = 320;
    const Floats x = random_floats(20 * kD, 1), residual = random_floats(20 * kD, 2),
                 weight = random_floats(kD, 3);
    for (const bool adds : {false, true})
        check_products(ops, "rms_norm", kD, [&](int rows, MatmulOperand operand, float* out, int threads) {
            Floats updated = residual;
            run_op(ops.rms_norm,
                   RmsNormArgs{adds ? x.data() : nullptr, kD, updated.data(), kD, weight.data(), 1e-5f, rows,
                               kD, out, kD, operand},
                   threads);
        });
}

void activations(const OpTable& ops) {
    constexpr int kF = 160, kK = 96;
    const Floats x = random_floats(20 * 2 * kF, 4);
    check_products(ops, "silu_mul", kF, [&](int rows, MatmulOperand operand, float* out, int threads) {
        run_op(ops.silu_mul, SiluMulArgs{x.data(), 2 * kF, rows, kF, out, kF, operand}, threads);
    });
    const PackedBuffer gate_up = random_weight(WeightType::q4m, 2 * kF, kK, 5);
    std::vector<double> scratch(static_cast<size_t>(matmul_scratch_bytes(WeightType::q4m, 20, kK)) / 8 + 1);
    check_products(ops, "matmul", kF, [&](int rows, MatmulOperand operand, float* out, int threads) {
        run_op(ops.matmul,
               MatmulArgs{.x = x.data(),
                          .ldx = kK,
                          .w = gate_up.view(),
                          .rows = rows,
                          .y = out,
                          .ldy = kF,
                          .scratch = scratch.data(),
                          .epilogue = Epilogue::silu_mul,
                          .operand = operand},
               threads);
    });
}

void norms_of_products(const OpTable& ops) {
    constexpr int kD = 288, kK = 64;
    const Floats x = random_floats(20 * kK, 6), residual = random_floats(20 * kD, 2),
                 weight = random_floats(kD, 3);
    const PackedBuffer down = random_weight(WeightType::q8, kD, kK, 8);
    std::vector<double> scratch(static_cast<size_t>(matmul_scratch_bytes(WeightType::q8, 20, kK)) / 8 + 1);
    const auto run = [&](int rows, MatmulOperand operand, float* out, int threads) {
        Floats updated = residual;
        MatmulAllReduceArgs args{{.x = x.data(),
                                  .ldx = kK,
                                  .w = down.view(),
                                  .rows = rows,
                                  .y = out,
                                  .ldy = kD,
                                  .scratch = scratch.data()},
                                 nullptr};
        args.norm.residual = updated.data();
        args.norm.ldr = kD;
        args.norm.weight = weight.data();
        args.norm.eps = 1e-5f;
        args.norm.operand = operand;
        run_op(ops.matmul_all_reduce, args, threads);
    };
    check_products(ops, "matmul_all_reduce", kD, run);
}

void attention(const OpTable& ops) {
    constexpr int kHeads = 3, kHeadDim = 64, kWidth = kHeads * kHeadDim;
    const Floats q = random_floats(20 * kWidth, 9), keys = random_floats(2 * kBlockSize * kHeadDim, 10);
    Floats cache = keys;
    Ints slots(20, 0), positions(20), table{0, 1}, kv_of_head(kHeads, 0);
    for (int t = 0; t < 20; ++t) positions[t] = t;
    check_products(
        ops, "paged_attention", kWidth, [&](int rows, MatmulOperand operand, float* out, int threads) {
            run_op(ops.paged_attention,
                   PagedAttentionArgs{q.data(), kWidth,
                                      KvCache{cache.data(), cache.data(), KvType::f32, 2, 1, kHeadDim},
                                      KvIndex{slots.data(), positions.data(), table.data(), 2},
                                      kv_of_head.data(), rows, kHeads, 0.125f, 0, out, kWidth, operand},
                   threads);
        });
}

}  // namespace

int main() {
    for_each_isa(norms);
    for_each_isa(activations);
    for_each_isa(norms_of_products);
    for_each_isa(attention);
    return failures() != 0;
}
