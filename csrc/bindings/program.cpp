#include "program/program.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "bindings/bindings.h"
#include "program/kv_type.h"
#include "program/worker_loop.h"
#include "ring/exchange.h"
#include "weights/packed_buffer.h"
#include "weights/packed_layout.h"

namespace py = pybind11;
using namespace fastserve;

namespace {

Rows rows_of(const std::string& name) {
    if (name == "tokens") return Rows::tokens;
    if (name == "samples") return Rows::samples;
    throw py::value_error("rows must be 'tokens' or 'samples', got '" + name + "'");
}

// An arena buffer, or a view of some of its columns: where it starts (bytes) and its row stride (elements).
struct Buffer {
    size_t offset;
    int64_t ld;
};

Buffer buffer_of(const py::tuple& pair) {
    return {pair[0].cast<size_t>(), pair[1].cast<int64_t>()};
}

// None: no such floats.
struct OptionalFloats {
    float* data = nullptr;
    int64_t ld = 0;

    OptionalFloats(const Program& p, const std::optional<py::tuple>& pair) {
        if (!pair) return;
        const Buffer buffer = buffer_of(*pair);
        data = p.buffer(buffer.offset);
        ld = buffer.ld;
    }
};

// Where the scratch of the matmul that reads a result lies (bytes), the type of its weight, copy_rows.
using Operand = std::optional<std::tuple<size_t, std::string, int>>;

MatmulOperand operand_of(const Program& p, const Operand& operand) {
    if (!operand) return {};
    const auto& [offset, type, copy_rows] = *operand;
    return {p.buffer(offset), find_weight_type(type), p.activation_bits(), copy_rows};
}

MatmulArgs matmul_args(Program& p, const std::optional<py::tuple>& x, const PackedBuffer& w, size_t scratch,
                       const std::optional<py::tuple>& y) {
    const OptionalFloats from(p, x), to(p, y);
    return {.x = from.data,
            .ldx = from.ld,
            .w = w.view(),
            .rows = 0,
            .y = to.data,
            .ldy = to.ld,
            .scratch = p.buffer(scratch),
            .activation_bits = p.activation_bits(),
            .prepared = !x};
}

void add_embed(Program& p, uintptr_t table, int gguf_type, int64_t row_bytes, int d, const py::tuple& out) {
    const Buffer to = buffer_of(out);
    p.append({Rows::tokens, EmbedArgs{.token_ids = p.slots().token_ids(),
                                      .table = reinterpret_cast<const uint8_t*>(table),
                                      .gguf_type = gguf_type,
                                      .row_bytes = row_bytes,
                                      .rows = 0,
                                      .d = d,
                                      .out = p.buffer(to.offset),
                                      .ldo = to.ld}});
}

void add_rms_norm(Program& p, const std::string& rows, const std::optional<py::tuple>& x,
                  const py::tuple& residual, std::vector<float> weight, float eps,
                  const std::optional<py::tuple>& out, const Operand& operand) {
    const Buffer r = buffer_of(residual);
    const OptionalFloats from(p, x), to(p, out);
    const int d = static_cast<int>(weight.size());
    p.append({rows_of(rows), RmsNormArgs{.x = from.data,
                                         .ldx = from.ld,
                                         .residual = p.buffer(r.offset),
                                         .ldr = r.ld,
                                         .weight = p.keep(std::move(weight)),
                                         .eps = eps,
                                         .rows = 0,
                                         .d = d,
                                         .out = to.data,
                                         .ldo = to.ld,
                                         .operand = operand_of(p, operand)}});
}

Epilogue epilogue_of(const std::string& name) {
    if (name == "none") return Epilogue::none;
    if (name == "silu_mul") return Epilogue::silu_mul;
    throw py::value_error("epilogue must be 'none' or 'silu_mul', got '" + name + "'");
}

void add_matmul(Program& p, const std::string& rows, const std::optional<py::tuple>& x, const PackedBuffer& w,
                size_t scratch, const std::optional<py::tuple>& y, const std::string& epilogue,
                const Operand& operand, int copy_rows) {
    MatmulArgs args = matmul_args(p, x, w, scratch, y);
    args.copy_rows = copy_rows;
    args.epilogue = epilogue_of(epilogue);
    args.operand = operand_of(p, operand);
    p.append({rows_of(rows), args});
}

void add_matmul_all_reduce(Program& p, const std::string& rows, const std::optional<py::tuple>& x,
                           const PackedBuffer& w, size_t scratch, const std::optional<py::tuple>& y,
                           const std::optional<py::tuple>& residual, std::vector<float> norm, float eps,
                           const Operand& operand) {
    MatmulAllReduceArgs args{matmul_args(p, x, w, scratch, y), p.exchange()};
    if (residual) {
        const Buffer r = buffer_of(*residual);
        args.norm.residual = p.buffer(r.offset);
        args.norm.ldr = r.ld;
        args.norm.weight = p.keep(std::move(norm));
        args.norm.eps = eps;
        args.norm.operand = operand_of(p, operand);
    }
    p.append({rows_of(rows), args});
}

RotaryArgs rotary_args(Program& p, const py::tuple& q, const py::tuple& k, std::vector<float> inv_freq,
                       int num_heads, int num_kv_heads, int head_dim) {
    const Buffer qb = buffer_of(q), kb = buffer_of(k);
    const int rotary_dim = 2 * static_cast<int>(inv_freq.size());
    return {.q = p.buffer(qb.offset),
            .ldq = qb.ld,
            .k = p.buffer(kb.offset),
            .ldk = kb.ld,
            .positions = p.slots().kv_index(0).positions,
            .inv_freq = p.keep(std::move(inv_freq)),
            .rows = 0,
            .num_heads = num_heads,
            .num_kv_heads = num_kv_heads,
            .head_dim = head_dim,
            .rotary_dim = rotary_dim};
}

StoreKvArgs store_kv_args(Program& p, const py::tuple& k, const py::tuple& v, const KvCache& cache,
                          int group) {
    const Buffer kb = buffer_of(k), vb = buffer_of(v);
    return {.k = p.buffer(kb.offset),
            .ldk = kb.ld,
            .v = p.buffer(vb.offset),
            .ldv = vb.ld,
            .cache = cache,
            .index = p.slots().kv_index(group),
            .rows = 0};
}

void add_rotary(Program& p, const py::tuple& q, const py::tuple& k, std::vector<float> inv_freq,
                int num_heads, int num_kv_heads, int head_dim) {
    p.append({Rows::tokens, rotary_args(p, q, k, std::move(inv_freq), num_heads, num_kv_heads, head_dim)});
}

KvCache add_kv_cache(Program& p, const std::string& type, int group, int num_kv_heads, int head_dim) {
    const int num_blocks = p.slots().limits().num_blocks.at(group);
    return p.add_kv_cache(find_kv_type(type), num_blocks, num_kv_heads, head_dim);
}

void add_store_kv(Program& p, const py::tuple& k, const py::tuple& v, const KvCache& cache, int group) {
    p.append({Rows::tokens, store_kv_args(p, k, v, cache, group)});
}

void add_rotary_store_kv(Program& p, const py::tuple& q, const py::tuple& k, const py::tuple& v,
                         std::vector<float> inv_freq, int num_heads, const KvCache& cache, int group) {
    p.append({Rows::tokens, RotaryStoreKvArgs{rotary_args(p, q, k, std::move(inv_freq), num_heads,
                                                          cache.num_kv_heads, cache.head_dim),
                                              store_kv_args(p, k, v, cache, group)}});
}

void add_paged_attention(Program& p, const py::tuple& q, const KvCache& cache, int group,
                         std::vector<int> kv_of_head, float scale, int window, size_t parts,
                         const std::optional<py::tuple>& out, const Operand& operand) {
    const Buffer qb = buffer_of(q);
    const OptionalFloats to(p, out);
    const int num_heads = static_cast<int>(kv_of_head.size());
    p.append({Rows::tokens, PagedAttentionArgs{.q = p.buffer(qb.offset),
                                               .ldq = qb.ld,
                                               .cache = cache,
                                               .index = p.slots().kv_index(group),
                                               .kv_of_head = p.keep(std::move(kv_of_head)),
                                               .rows = 0,
                                               .num_heads = num_heads,
                                               .scale = scale,
                                               .window = window,
                                               .out = to.data,
                                               .ldo = to.ld,
                                               .operand = operand_of(p, operand),
                                               .parts = p.buffer(parts)}});
}

void add_silu_mul(Program& p, const py::tuple& x, int f, const std::optional<py::tuple>& out,
                  const Operand& operand) {
    const Buffer from = buffer_of(x);
    const OptionalFloats to(p, out);
    p.append({Rows::tokens, SiluMulArgs{.x = p.buffer(from.offset),
                                        .ldx = from.ld,
                                        .rows = 0,
                                        .f = f,
                                        .out = to.data,
                                        .ldo = to.ld,
                                        .operand = operand_of(p, operand)}});
}

void add_select_rows(Program& p, const py::tuple& x, int d, const std::optional<py::tuple>& out,
                     const Operand& operand) {
    const Buffer from = buffer_of(x);
    const OptionalFloats to(p, out);
    p.append({Rows::samples, SelectRowsArgs{.x = p.buffer(from.offset),
                                            .ldx = from.ld,
                                            .sample_rows = p.slots().sample_rows(),
                                            .rows = 0,
                                            .d = d,
                                            .out = to.data,
                                            .ldo = to.ld,
                                            .operand = operand_of(p, operand)}});
}

void add_sample(Program& p, const py::tuple& logits, int n, int vocab_begin, size_t scratch) {
    const Buffer from = buffer_of(logits);
    p.append({Rows::samples, SampleArgs{.logits = p.buffer(from.offset),
                                        .ldl = from.ld,
                                        .rows = 0,
                                        .n = n,
                                        .vocab_begin = vocab_begin,
                                        .vocab_size = p.slots().limits().vocab_size,
                                        .sample_rows = p.slots().samples(),
                                        .exchange = p.exchange(),
                                        .scratch = p.buffer(scratch),
                                        .out = p.slots().sampled()}});
}

// What a buffer holds after a step, for tests that look inside.
py::bytes read_buffer(const Program& p, size_t offset, size_t bytes) {
    p.buffer(offset + bytes - 4);
    return {reinterpret_cast<const char*>(p.buffer(offset)), bytes};
}

std::vector<std::tuple<std::string, std::string, std::string>> describe_ops(const Program& p) {
    std::vector<std::tuple<std::string, std::string, std::string>> described;
    for (const Op& op : p.ops())
        described.emplace_back(name_of(op.args), shape_of(op.args), arithmetic_of(op.args));
    return described;
}

py::object take_passes(const Program& p) {
    if (p.timeline() == nullptr) return py::none();
    py::list taken;
    for (const Pass& pass : p.timeline()->take()) {
        std::vector<std::pair<int64_t, int64_t>> costs;
        for (const OpCost& cost : pass.costs) costs.emplace_back(cost.num_bytes, cost.num_operations);
        std::vector<std::vector<std::pair<int64_t, int64_t>>> spans(costs.size());
        const size_t num_threads = pass.spans.size() / costs.size();
        for (size_t i = 0; i < pass.spans.size(); ++i)
            spans[i / num_threads].emplace_back(pass.spans[i].begin_ns, pass.spans[i].end_ns);
        taken.append(py::make_tuple(pass.num_tokens, pass.num_samples, pass.num_barriers, costs, spans));
    }
    return taken;
}

using FaultTuple = std::tuple<std::string, std::string, int64_t, int64_t, double>;

void commit_faults(Program& p, const std::vector<FaultTuple>& faults) {
    static const std::unordered_map<std::string, FaultAction> kActions = {{"kill", FaultAction::kill},
                                                                          {"stop", FaultAction::stop},
                                                                          {"delay", FaultAction::delay},
                                                                          {"slow", FaultAction::slow}};
    std::vector<Fault> planned;
    for (const auto& [action, op, call, segment, amount] : faults) {
        const auto found = kActions.find(action);
        if (found == kActions.end())
            throw py::value_error("action must be kill, stop, delay or slow, got '" + action + "'");
        planned.push_back({found->second, op, call, segment, amount});
    }
    p.commit_faults(std::move(planned));
}

std::string run_worker_loop(std::shared_ptr<Program> program, std::vector<int> cores,
                            std::shared_ptr<Mailbox> steps, int reader, std::shared_ptr<Mailbox> results) {
    py::gil_scoped_release release;
    return WorkerLoop(std::move(program), std::move(cores), std::move(steps), reader, std::move(results))
        .run();
}

std::unique_ptr<WorkerThread> start_worker_thread(std::shared_ptr<Program> program, std::vector<int> cores,
                                                  std::shared_ptr<Mailbox> steps,
                                                  std::shared_ptr<Mailbox> results) {
    auto loop = std::make_unique<WorkerLoop>(std::move(program), std::move(cores), steps, 0, results);
    return std::make_unique<WorkerThread>(std::move(loop), std::move(steps), std::move(results));
}

}  // namespace

void bind_program(py::module_& m) {
    m.attr("BLOCK_SIZE") = kBlockSize;
    m.def("matmul_scratch_bytes", [](const PackedBuffer& w, int64_t rows) {
        return matmul_scratch_bytes(w.view().type, rows, w.view().k);
    });
    m.def("operand_copy_bytes", [](const PackedBuffer& w, int64_t copy_rows) {
        return operand_copy_bytes(w.view().type, copy_rows, w.view().k);
    });
    m.def("sample_scratch_bytes", &sample_scratch_bytes);
    m.def(
        "kv_block_bytes",
        [](const std::string& type, int64_t num_kv_heads, int64_t head_dim) {
            const KvType found = find_kv_type(type);
            return num_kv_heads * (key_block_bytes(found, head_dim) + value_block_bytes(found, head_dim));
        },
        py::arg("type"), py::arg("num_kv_heads"), py::arg("head_dim"),
        "Of a layer's keys and values. Raises ValueError for an unknown type.");
    py::class_<KvCache>(m, "KvCache").def_readonly("num_blocks", &KvCache::num_blocks);
    py::class_<Program, std::shared_ptr<Program>>(m, "Program")
        .def(py::init([](int max_tokens, int max_samples, int num_slots, int max_blocks, int vocab_size,
                         std::vector<int> num_blocks, std::shared_ptr<Exchange> exchange,
                         int activation_bits) {
                 return std::make_shared<Program>(SlotLimits{max_tokens, max_samples, num_slots, max_blocks,
                                                             vocab_size, std::move(num_blocks)},
                                                  std::move(exchange), activation_bits);
             }),
             py::kw_only(), py::arg("max_tokens"), py::arg("max_samples"), py::arg("num_slots"),
             py::arg("max_blocks"), py::arg("vocab_size"), py::arg("num_blocks"),
             py::arg("exchange") = nullptr, py::arg("activation_bits") = 14)
        .def_property_readonly("num_ops", [](const Program& p) { return p.ops().size(); })
        .def_property_readonly("ops", &describe_ops,
                               "(name, shape, arithmetic) of each, in the order in which they run.")
        .def("record_timeline", &Program::record_timeline, "Times every pass from now on.")
        .def(
            "take_passes", &take_passes,
            "The passes since the last time: (num_tokens, num_samples, num_barriers, costs, spans). Of each\n"
            "op the bytes and operations, and of each of its threads when it began and ended, in ns of\n"
            "time.monotonic_ns; zeros for an op without rows. None if no timeline is recorded.")
        .def("allocate_arena", &Program::allocate_arena, py::arg("num_bytes"))
        .def("read_buffer", &read_buffer, py::arg("offset"), py::arg("num_bytes"))
        .def("commit_faults", &commit_faults, py::arg("faults"),
             "For tests: (action, op, call, segment, amount) each; replaces those that were there.")
        .def("add_kv_cache", &add_kv_cache, py::arg("type"), py::arg("group"), py::arg("num_kv_heads"),
             py::arg("head_dim"))
        .def("add_embed", &add_embed, py::arg("table"), py::arg("gguf_type"), py::arg("row_bytes"),
             py::arg("d"), py::arg("out"))
        .def("add_rms_norm", &add_rms_norm, py::arg("rows"), py::arg("x"), py::arg("residual"),
             py::arg("weight"), py::arg("eps"), py::arg("out"), py::arg("operand") = py::none(),
             "out None: the operand alone.")
        .def("add_matmul", &add_matmul, py::keep_alive<1, 4>(), py::arg("rows"), py::arg("x"), py::arg("w"),
             py::arg("scratch"), py::arg("y"), py::arg("epilogue") = "none", py::arg("operand") = py::none(),
             py::arg("copy_rows") = 0,
             "x None: the op that makes it has written its operand to the scratch, with these copy_rows.")
        .def("add_matmul_all_reduce", &add_matmul_all_reduce, py::keep_alive<1, 4>(), py::arg("rows"),
             py::arg("x"), py::arg("w"), py::arg("scratch"), py::arg("y"), py::arg("residual") = py::none(),
             py::arg("norm") = std::vector<float>(), py::arg("eps") = 0.0f, py::arg("operand") = py::none(),
             "With a residual and a norm's weight: y is the norm of residual + sum. x as in add_matmul.")
        .def("add_rotary", &add_rotary, py::arg("q"), py::arg("k"), py::arg("inv_freq"), py::arg("num_heads"),
             py::arg("num_kv_heads"), py::arg("head_dim"))
        .def("add_store_kv", &add_store_kv, py::arg("k"), py::arg("v"), py::arg("cache"), py::arg("group"))
        .def("add_rotary_store_kv", &add_rotary_store_kv, py::arg("q"), py::arg("k"), py::arg("v"),
             py::arg("inv_freq"), py::arg("num_heads"), py::arg("cache"), py::arg("group"))
        .def("add_paged_attention", &add_paged_attention, py::arg("q"), py::arg("cache"), py::arg("group"),
             py::arg("kv_of_head"), py::arg("scale"), py::arg("window"), py::arg("parts"), py::arg("out"),
             py::arg("operand") = py::none())
        .def(
            "attention_parts_bytes",
            [](Program& p, int num_heads, int head_dim, int group) {
                return attention_parts_bytes(num_heads, head_dim, p.slots().kv_index(group).max_blocks);
            },
            py::arg("num_heads"), py::arg("head_dim"), py::arg("group"),
            "Scratch with which threads share the partitions of a long row.")
        .def("add_silu_mul", &add_silu_mul, py::arg("x"), py::arg("f"), py::arg("out"),
             py::arg("operand") = py::none())
        .def("add_select_rows", &add_select_rows, py::arg("x"), py::arg("d"), py::arg("out"),
             py::arg("operand") = py::none())
        .def("add_sample", &add_sample, py::arg("logits"), py::arg("n"), py::arg("vocab_begin"),
             py::arg("scratch"));
    py::class_<WorkerThread>(m, "WorkerThread")
        .def(py::init(&start_worker_thread), py::arg("program"), py::arg("cores"), py::arg("steps"),
             py::arg("results"))
        .def_property_readonly("ended", &WorkerThread::ended)
        .def_property_readonly("error", &WorkerThread::error)
        .def("stop", &WorkerThread::stop, py::call_guard<py::gil_scoped_release>());
    m.def("run_worker_loop", &run_worker_loop, py::arg("program"), py::arg("cores"), py::arg("steps"),
          py::arg("reader"), py::arg("results"),
          "Serves steps until the mailbox closes; returns why it ended, if early.");
}
