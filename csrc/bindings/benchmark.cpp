// What fastserve/benchmark asks of the machine.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "benchmark/fill.h"
#include "benchmark/naked_all_reduce.h"
#include "benchmark/placement.h"
#include "benchmark/roofs.h"
#include "bindings/bindings.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;

float* floats(Address address) {
    return reinterpret_cast<float*>(address);
}

fastserve::Flag& flag(Address address) {
    return *reinterpret_cast<fastserve::Flag*>(address);
}

void check_sum(int64_t count, int calls) {
    if (count < 0 || count % 32 != 0)
        throw std::invalid_argument("count must be a multiple of 32, got " + std::to_string(count));
    if (calls < 0) throw std::invalid_argument("calls must be >= 0, got " + std::to_string(calls));
}

}  // namespace

void bind_benchmark(py::module_& m) {
    using namespace fastserve;
    using Unlocked = py::call_guard<py::gil_scoped_release>;
    m.def("measure_one_way_ns", &measure_one_way_ns, py::arg("core_a"), py::arg("core_b"),
          py::arg("ping_pongs") = 150, Unlocked(),
          "Nanoseconds of a cache line's way between two cores; None if threads cannot be pinned to them.");
    m.def("measure_read", &measure_read, py::arg("cores"), py::arg("num_bytes"), py::arg("rounds"),
          Unlocked(), "GB/s per round of reading num_bytes in all, one thread per core (-1: not pinned).");
    m.def("measure_peak", &measure_peak, py::arg("kind"), py::arg("cores"), py::arg("round_us"),
          py::arg("rounds"), Unlocked(), "10^9 operations per second, per round: 'f32', 'bf16' or 'int8'.");
    m.def(
        "fill",
        [](Address data, int64_t count, int calls) {
            for (int i = 0; i < calls; ++i) fill_with_ones(floats(data), count);
        },
        py::arg("data"), py::arg("count"), py::arg("calls"), Unlocked(),
        "So many times: writes ones into fp32 memory.");
    m.attr("FLAG_BYTES") = sizeof(Flag);
    py::class_<NakedAllReduce>(m, "NakedAllReduce",
                               "The limit of a sum of symmetric buffers, for two ranks (naked_all_reduce.h).")
        .def(py::init([](Address own, Address peer, int rank) {
                 return NakedAllReduce(flag(own), flag(peer), rank);
             }),
             py::arg("own_flag"), py::arg("peer_flag"), py::arg("rank"))
        .def(
            "fill_and_sum",
            [](NakedAllReduce& naked, Address own, Address peer, int64_t count, int calls) {
                check_sum(count, calls);
                for (int i = 0; i < calls; ++i) {
                    fill_with_ones(floats(own), count);
                    naked.sum(floats(own), floats(peer), count);
                }
            },
            py::arg("own"), py::arg("peer"), py::arg("count"), py::arg("calls"), Unlocked(),
            "So many times: writes ones into the own buffer and sums both. Both ranks call it alike.");
}
