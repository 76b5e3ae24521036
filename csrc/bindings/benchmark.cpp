// What fastserve/benchmark asks of the machine.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "benchmark/placement.h"
#include "benchmark/roofs.h"
#include "bindings/bindings.h"

namespace py = pybind11;

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
}
