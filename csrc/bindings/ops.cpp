// _C.ops: every kernel on addresses, sizes and strides, run by one team of threads for the whole process.
//
// Shapes, dtypes and contiguity are checked in fastserve/ops, which knows tensors. What an index tensor holds
// is checked here, where a loop over it is cheap: an id out of range is a ValueError, never a read past the
// end.
#include <pybind11/pybind11.h>
#include <sys/mman.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/op_runner.h"
#include "cpu/dispatch.h"
#include "ops.h"
#include "program/kv_type.h"
#include "ring/exchange.h"
#include "weights/packed_layout.h"
#include "weights/packing.h"

namespace py = pybind11;

namespace fastserve {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// Never destroyed: its threads end with the process, in whatever order other statics do.
OpRunner& runner() {
    static OpRunner& shared = *new OpRunner;
    return shared;
}

void check_ids(const char* name, const int32_t* ids, int64_t count, int64_t limit) {
    for (int64_t i = 0; i < count; ++i)
        if (ids[i] < 0 || ids[i] >= limit)
            throw std::invalid_argument(std::string(name) + " must be in [0, " + std::to_string(limit) +
                                        "), got " + std::to_string(ids[i]));
}

// The blocks of the positions that row t reads lie in the cache; `window` as in PagedAttentionArgs, 1: its
// own.
void check_index(const KvIndex& index, int32_t rows, int32_t num_slots, int32_t num_blocks, int32_t window) {
    check_ids("index.row_slot", index.row_slot, rows, num_slots);
    check_ids("index.positions", index.positions, rows, int64_t{index.max_blocks} * kBlockSize);
    for (int32_t t = 0; t < rows; ++t) {
        const int32_t position = index.positions[t];
        const int32_t first = window > 0 ? std::max(position - window + 1, 0) / kBlockSize : 0;
        const int32_t* table = index.tables + int64_t{index.row_slot[t]} * index.max_blocks;
        check_ids("index.tables", table + first, position / kBlockSize - first + 1, num_blocks);
    }
}

void embed(Address token_ids, Address table, int64_t num_rows, int32_t gguf_type, int64_t row_bytes,
           int32_t rows, int32_t d, Address out, int64_t ldo) {
    check_ids("token_ids", at<int32_t>(token_ids), rows, num_rows);
    runner().run(&OpTable::embed, EmbedArgs{.token_ids = at<int32_t>(token_ids),
                                            .table = at<uint8_t>(table),
                                            .gguf_type = gguf_type,
                                            .row_bytes = row_bytes,
                                            .rows = rows,
                                            .d = d,
                                            .out = at<float>(out),
                                            .ldo = ldo});
}

void rms_norm(Address x, int64_t ldx, Address residual, int64_t ldr, Address weight, float eps, int32_t rows,
              int32_t d, Address out, int64_t ldo) {
    runner().run(&OpTable::rms_norm, RmsNormArgs{.x = at<float>(x),
                                                 .ldx = ldx,
                                                 .residual = at<float>(residual),
                                                 .ldr = ldr,
                                                 .weight = at<float>(weight),
                                                 .eps = eps,
                                                 .rows = rows,
                                                 .d = d,
                                                 .out = at<float>(out),
                                                 .ldo = ldo});
}

PackedWeight packed_weight(Address data, const std::string& name, int32_t n, int32_t k) {
    const WeightType type = find_weight_type(name);
    return {.data = at<uint8_t>(data), .type = type, .n = n, .k = k, .panel_bytes = panel_bytes(type, k)};
}

void pack(Address weight, int64_t ldw, const std::string& type, int32_t n, int32_t k, Address out) {
    const py::gil_scoped_release unlocked;
    pack_f32(at<float>(weight), ldw, packed_weight(out, type, n, k), at<uint8_t>(out));
}

void check_row_fits(const Exchange* exchange, int32_t d) {
    if (exchange && exchange->rows_per_slice(d) == 0)
        throw std::invalid_argument("group must hold a row of " + std::to_string(d) +
                                    " floats, got buffers of " + std::to_string(exchange->gather_capacity()) +
                                    " bytes");
}

MatmulArgs matmul_args(Address x, int64_t ldx, int32_t rows, Address w, const std::string& type, int32_t n,
                       int32_t k, Address y, int64_t ldy) {
    return {.x = at<float>(x),
            .ldx = ldx,
            .w = packed_weight(w, type, n, k),
            .rows = rows,
            .y = at<float>(y),
            .ldy = ldy,
            .scratch = nullptr};
}

// A large result lies in memory that was never touched. On huge pages, where the kernel grants them, its
// faults take a quarter of the time: 7 ms of 100 MB, not 28.
void ask_for_huge_pages(float* data, int64_t count) {
    constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
    constexpr int64_t kWorthIt = 8 * kHugePage / sizeof(float);
    if (count < kWorthIt) return;
    const uintptr_t bytes = static_cast<uintptr_t>(count) * sizeof(float);
    const uintptr_t address = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish
}

MatmulArgs with_scratch(MatmulArgs args, OpRunner& runner) {
    args.scratch = runner.scratch(matmul_scratch_bytes(args.w.type, args.rows, args.w.k));
    return args;
}

void matmul(Address x, int64_t ldx, int32_t rows, Address w, const std::string& type, int32_t n, int32_t k,
            Address y, int64_t ldy, int32_t activation_bits, bool silu_mul, Address bias) {
    MatmulArgs args = matmul_args(x, ldx, rows, w, type, n, k, y, ldy);
    args.bias = at<float>(bias);
    args.activation_bits = activation_bits;
    if (silu_mul) args.epilogue = Epilogue::silu_mul;
    ask_for_huge_pages(args.y, (rows - 1) * ldy + (silu_mul ? n / 2 : n));
    runner().run_with_scratch(&OpTable::matmul, [&](OpRunner& runner) { return with_scratch(args, runner); });
}

void rotary(Address q, int64_t ldq, Address k, int64_t ldk, Address positions, Address inv_freq, int32_t rows,
            int32_t num_heads, int32_t num_kv_heads, int32_t head_dim, int32_t rotary_dim) {
    runner().run(&OpTable::rotary, RotaryArgs{.q = at<float>(q),
                                              .ldq = ldq,
                                              .k = at<float>(k),
                                              .ldk = ldk,
                                              .positions = at<int32_t>(positions),
                                              .inv_freq = at<float>(inv_freq),
                                              .rows = rows,
                                              .num_heads = num_heads,
                                              .num_kv_heads = num_kv_heads,
                                              .head_dim = head_dim,
                                              .rotary_dim = rotary_dim});
}

void store_kv(Address k, int64_t ldk, Address v, int64_t ldv, Address k_cache, Address v_cache,
              const std::string& type, int32_t num_blocks, int32_t num_kv_heads, int32_t head_dim,
              Address row_slot, Address positions, Address tables, int32_t num_slots, int32_t max_blocks,
              int32_t rows) {
    const KvIndex index{at<int32_t>(row_slot), at<int32_t>(positions), at<int32_t>(tables), max_blocks};
    check_index(index, rows, num_slots, num_blocks, 1);
    runner().run(&OpTable::store_kv,
                 StoreKvArgs{.k = at<float>(k),
                             .ldk = ldk,
                             .v = at<float>(v),
                             .ldv = ldv,
                             .cache = {at<void>(k_cache), at<void>(v_cache), find_kv_type(type), num_blocks,
                                       num_kv_heads, head_dim},
                             .index = index,
                             .rows = rows});
}

void paged_attention(Address q, int64_t ldq, Address k_cache, Address v_cache, const std::string& type,
                     int32_t num_blocks, int32_t num_kv_heads, int32_t head_dim, Address row_slot,
                     Address positions, Address tables, int32_t num_slots, int32_t max_blocks,
                     Address kv_of_head, int32_t rows, int32_t num_heads, float scale, int32_t window,
                     Address out, int64_t ldo) {
    const KvIndex index{at<int32_t>(row_slot), at<int32_t>(positions), at<int32_t>(tables), max_blocks};
    check_index(index, rows, num_slots, num_blocks, window);
    check_ids("kv_of_head", at<int32_t>(kv_of_head), num_heads, num_kv_heads);
    runner().run_with_scratch(&OpTable::paged_attention, [&](OpRunner& runner) {
        const int64_t bytes = attention_parts_bytes(num_heads, head_dim, max_blocks);
        return PagedAttentionArgs{.q = at<float>(q),
                                  .ldq = ldq,
                                  .cache = {at<void>(k_cache), at<void>(v_cache), find_kv_type(type),
                                            num_blocks, num_kv_heads, head_dim},
                                  .index = index,
                                  .kv_of_head = at<int32_t>(kv_of_head),
                                  .rows = rows,
                                  .num_heads = num_heads,
                                  .scale = scale,
                                  .window = window,
                                  .out = at<float>(out),
                                  .ldo = ldo,
                                  .parts = static_cast<float*>(runner.scratch(bytes))};
    });
}

void silu_mul(Address x, int64_t ldx, int32_t rows, int32_t f, Address out, int64_t ldo) {
    runner().run(&OpTable::silu_mul, SiluMulArgs{at<float>(x), ldx, rows, f, at<float>(out), ldo});
}

void select_rows(Address x, int64_t ldx, int32_t num_rows, Address sample_rows, int32_t rows, int32_t d,
                 Address out, int64_t ldo) {
    check_ids("sample_rows", at<int32_t>(sample_rows), rows, num_rows);
    runner().run(&OpTable::select_rows, SelectRowsArgs{.x = at<float>(x),
                                                       .ldx = ldx,
                                                       .sample_rows = at<int32_t>(sample_rows),
                                                       .rows = rows,
                                                       .d = d,
                                                       .out = at<float>(out),
                                                       .ldo = ldo});
}

void all_reduce(Address x, int64_t ldx, int32_t rows, int32_t d, Exchange* exchange) {
    check_row_fits(exchange, d);
    runner().run(&OpTable::all_reduce, AllReduceArgs{at<float>(x), ldx, rows, d, exchange});
}

void matmul_all_reduce(Address x, int64_t ldx, int32_t rows, Address w, const std::string& type, int32_t n,
                       int32_t k, Address y, int64_t ldy, Exchange* exchange, Address residual, int64_t ldr,
                       Address norm_weight, float eps) {
    const MatmulArgs args = matmul_args(x, ldx, rows, w, type, n, k, y, ldy);
    check_row_fits(exchange, n);
    runner().run_with_scratch(&OpTable::matmul_all_reduce, [&](OpRunner& runner) {
        MatmulAllReduceArgs fused{.matmul = with_scratch(args, runner), .exchange = exchange};
        fused.norm.residual = at<float>(residual);
        fused.norm.ldr = ldr;
        fused.norm.weight = at<float>(norm_weight);
        fused.norm.eps = eps;
        return fused;
    });
}

// One row per request; the settings are arrays [rows]. Penalties, bias and bans live in a program's slots.
void sample(Address logits, int64_t ldl, int32_t rows, int32_t vocab_size, Address temperature, Address top_k,
            Address top_p, Address min_p, Address seed, Address output_idx, Address token_ids,
            Address logprobs, Address ranks) {
    std::vector<SamplingState> states(static_cast<size_t>(rows), SamplingState{});
    std::vector<SampleRow> sample_rows(states.size());
    std::vector<SampleOut> out(states.size());
    for (size_t s = 0; s < states.size(); ++s) {
        states[s].temperature = at<float>(temperature)[s];
        states[s].top_k = at<int32_t>(top_k)[s];
        states[s].top_p = at<float>(top_p)[s];
        states[s].min_p = at<float>(min_p)[s];
        states[s].repetition_penalty = 1.0f;
        states[s].seed = at<uint64_t>(seed)[s];
        sample_rows[s] = {.state = &states[s], .output_idx = at<int32_t>(output_idx)[s], .target = -1};
    }
    runner().run_with_scratch(&OpTable::sample, [&](OpRunner& runner) {
        const int64_t bytes = sample_scratch_bytes(runner.num_threads(), vocab_size);
        return SampleArgs{.logits = at<float>(logits),
                          .ldl = ldl,
                          .rows = rows,
                          .n = vocab_size,
                          .vocab_begin = 0,
                          .vocab_size = vocab_size,
                          .sample_rows = sample_rows.data(),
                          .exchange = nullptr,
                          .scratch = static_cast<float*>(runner.scratch(bytes)),
                          .out = out.data()};
    });
    for (size_t s = 0; s < out.size(); ++s) {
        at<int32_t>(token_ids)[s] = out[s].token;
        at<float>(logprobs)[s] = out[s].logprob;
        at<int32_t>(ranks)[s] = out[s].rank;
    }
}

py::list list_isas() {
    py::list found;
    for (const Isa& isa : isas()) found.append(py::make_tuple(isa.name, isa.supported, isa.needs));
    return found;
}

}  // namespace

}  // namespace fastserve

void bind_ops(pybind11::module_& m) {
    using namespace fastserve;
    m.def("isas", &list_isas,
          "(name, supported by this CPU, what it needs) of every ISA built, widest first.");
    m.def(
        "isa", [] { return runner().table().isa; },
        "The ISA in use. Raises RuntimeError if FASTSERVE_ISA names one that is unknown or lacking.");

    py::module_ ops = m.def_submodule("ops", "Kernels on addresses, sizes and strides (csrc/ops.h).");
    ops.def(
        "use_isa", [](const std::string& name) { runner().use_isa(name); }, py::arg("name"),
        "Runs the kernels of that ISA from now on; '' returns to the one chosen at load.");
    ops.def(
        "set_num_threads", [](int num_threads) { runner().set_num_threads(num_threads); },
        py::arg("num_threads"),
        "Threads of the process's team; at first as many as the affinity mask has cores.");
    ops.def("num_threads", [] { return runner().locked_num_threads(); });
    ops.def("embed", &embed);
    ops.def("rms_norm", &rms_norm);
    ops.def("pack", &fastserve::pack);
    ops.def("matmul", &matmul, py::arg("x"), py::arg("ldx"), py::arg("rows"), py::arg("w"), py::arg("type"),
            py::arg("n"), py::arg("k"), py::arg("y"), py::arg("ldy"), py::arg("activation_bits"),
            py::arg("silu_mul") = false, py::arg("bias") = 0,
            "silu_mul: w is [gate | up], y [rows, n / 2], which must be a multiple of 32 columns.");
    ops.def("rotary", &rotary);
    ops.def("store_kv", &store_kv);
    ops.def("paged_attention", &paged_attention);
    ops.def("silu_mul", &silu_mul);
    ops.def("select_rows", &select_rows);
    ops.def("all_reduce", &all_reduce);
    ops.def("matmul_all_reduce", &matmul_all_reduce, py::arg("x"), py::arg("ldx"), py::arg("rows"),
            py::arg("w"), py::arg("type"), py::arg("n"), py::arg("k"), py::arg("y"), py::arg("ldy"),
            py::arg("exchange"), py::arg("residual") = 0, py::arg("ldr") = 0, py::arg("norm_weight") = 0,
            py::arg("eps") = 0.0f, "With a residual and a norm's weight: y is the norm of residual + sum.");
    ops.def("sample", &sample);
}
