// The per-sequence state of a rank for Python: what a rank on a GPU keeps of its requests.
#include "program/slots.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "program/step_columns.h"

namespace py = pybind11;
using namespace fastserve;

namespace {

const char* name_of(ColumnType type) {
    return type == ColumnType::i32 ? "i32" : type == ColumnType::i64 ? "i64" : "f32";
}

py::tuple step_columns() {
    py::list columns;
    for (const StepColumn& column : kStepColumns)
        columns.append(py::make_tuple(column.name, name_of(column.type), column.of_samples));
    return py::tuple(columns);
}

void apply(SlotTable& slots, const py::bytes& message) {
    const std::string_view bytes = message;
    std::vector<int32_t> words(bytes.size() / 4);
    std::copy_n(bytes.data(), words.size() * 4, reinterpret_cast<char*>(words.data()));
    slots.apply(words.data(), words.size());
}

template <typename T>
py::bytes bytes_of(const std::vector<T>& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

py::dict edits_of(const SlotTable& slots) {
    const LogitEdits edits = logit_edits(slots);
    py::dict lists;
    if (!edits.penalty_rows.empty())
        lists["penalties"] = py::make_tuple(bytes_of(edits.penalty_rows), bytes_of(edits.penalty_ids),
                                            bytes_of(edits.output_counts), bytes_of(edits.repetition),
                                            bytes_of(edits.presence), bytes_of(edits.frequency));
    if (!edits.bias_rows.empty())
        lists["biases"] =
            py::make_tuple(bytes_of(edits.bias_rows), bytes_of(edits.bias_ids), bytes_of(edits.biases));
    if (!edits.ban_rows.empty())
        lists["bans"] = py::make_tuple(bytes_of(edits.ban_rows), bytes_of(edits.ban_ids));
    return lists;
}

// (row, target, num_logprobs) of the sampled rows that report more than a token.
std::vector<std::tuple<int32_t, int32_t, int32_t>> reports_of(const SlotTable& slots) {
    std::vector<std::tuple<int32_t, int32_t, int32_t>> reports;
    for (int32_t row = 0; row < slots.num_samples(); ++row) {
        const SampleRow& sample = slots.samples()[row];
        const int32_t num_logprobs = sample.state->num_logprobs;
        if (sample.target >= 0 || num_logprobs >= 0)
            reports.emplace_back(row, sample.target, std::max(num_logprobs, 0));
    }
    return reports;
}

// logprob and rank of the token, the likeliest tokens and their logprobs.
using Report = std::tuple<int32_t, float, int32_t, std::vector<int32_t>, std::vector<float>>;

void commit(SlotTable& slots, const std::vector<int32_t>& tokens, const std::vector<Report>& reports) {
    if (tokens.size() != static_cast<size_t>(slots.num_samples()))
        throw py::value_error("tokens must be one of each sampled row, " +
                              std::to_string(slots.num_samples()) + ", got " + std::to_string(tokens.size()));
    for (int32_t row = 0; row < slots.num_samples(); ++row) {
        SampleOut& out = slots.sampled()[row];
        const int32_t target = slots.samples()[row].target;
        const int32_t token = target >= 0 ? target : tokens[row];
        if (token < 0 || token >= slots.limits().vocab_size)
            throw py::value_error("tokens must be in [0, " + std::to_string(slots.limits().vocab_size) +
                                  "), got " + std::to_string(token));
        out.token = token;
        out.logprob = 0.0f;
        out.rank = out.num_top = 0;
    }
    for (const auto& [row, logprob, rank, top_ids, top_logprobs] : reports) {
        if (row < 0 || row >= slots.num_samples()) throw py::value_error("a report is of no sampled row");
        if (top_ids.size() != top_logprobs.size() || top_ids.size() > kMaxTopLogprobs)
            throw py::value_error("a report has at most " + std::to_string(kMaxTopLogprobs) +
                                  " likeliest tokens, each with its logprob");
        SampleOut& out = slots.sampled()[row];
        out.logprob = logprob;
        out.rank = rank;
        out.num_top = static_cast<int32_t>(top_ids.size());
        std::copy(top_ids.begin(), top_ids.end(), out.top_ids);
        std::copy(top_logprobs.begin(), top_logprobs.end(), out.top_logprobs);
    }
    slots.commit();
}

py::bytes encode_result(const SlotTable& slots, int32_t elapsed_us) {
    std::vector<int32_t> words;
    slots.encode_result(elapsed_us, words);
    return bytes_of(words);
}

}  // namespace

void bind_slots(py::module_& m) {
    m.attr("STEP_COLUMNS") = step_columns();
    py::class_<SlotTable>(m, "SlotTable")
        .def(py::init([](int max_tokens, int max_samples, int num_slots, int max_blocks, int vocab_size,
                         std::vector<int32_t> num_blocks) {
                 return std::make_unique<SlotTable>(SlotLimits{max_tokens, max_samples, num_slots, max_blocks,
                                                               vocab_size, std::move(num_blocks)});
             }),
             py::kw_only(), py::arg("max_tokens"), py::arg("max_samples"), py::arg("num_slots"),
             py::arg("max_blocks"), py::arg("vocab_size"), py::arg("num_blocks"))
        .def_property_readonly("num_tokens", &SlotTable::num_tokens)
        .def_property_readonly("num_samples", &SlotTable::num_samples)
        .def_property_readonly("granted", &SlotTable::granted)
        .def_property_readonly("columns_bytes",
                               [](const SlotTable& slots) { return step_columns_bytes(slots.limits()); })
        .def("apply", &apply, py::arg("message"))
        .def(
            "write_columns",
            [](const SlotTable& slots, int32_t num_rows, int32_t num_samples, uintptr_t address) {
                write_step_columns(slots, num_rows, num_samples, reinterpret_cast<void*>(address));
            },
            py::arg("num_rows"), py::arg("num_samples"), py::arg("address"))
        .def(
            "write_tables",
            [](const SlotTable& slots, int32_t group, uintptr_t address) {
                const SlotLimits& limits = slots.limits();
                std::copy_n(slots.kv_index(group).tables,
                            static_cast<size_t>(limits.num_slots) * limits.max_blocks,
                            reinterpret_cast<int32_t*>(address));
            },
            py::arg("group"), py::arg("address"))
        .def("edits", &edits_of)
        .def("reports", &reports_of)
        .def("commit", &commit, py::arg("tokens"), py::arg("reports"))
        .def("encode_result", &encode_result, py::arg("elapsed_us"));
}
