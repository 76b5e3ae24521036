// _C.PackedWeight: memory for a packed weight, filled from addresses of file or tensor data.
#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "weights/packed_buffer.h"
#include "weights/packed_layout.h"
#include "weights/packing.h"

namespace py = pybind11;

namespace fastserve {
namespace {

using Address = uintptr_t;
using Range = std::pair<int64_t, int64_t>;

void pack_gguf(PackedBuffer& buffer, uint32_t gguf_type, Address address, int64_t file_k, Range rows,
               Range cols, int64_t at) {
    pack_slice({.gguf_type = gguf_type,
                .data = reinterpret_cast<const uint8_t*>(address),
                .file_k = file_k,
                .row_begin = rows.first,
                .row_end = rows.second,
                .col_begin = cols.first,
                .col_end = cols.second},
               buffer.view(), buffer.data(), at);
}

py::bytes dequantise(const PackedBuffer& buffer) {
    const PackedWeight& w = buffer.view();
    std::string bytes(static_cast<size_t>(w.n) * static_cast<size_t>(w.k) * sizeof(float), '\0');
    unpack(w, reinterpret_cast<float*>(bytes.data()));
    return bytes;
}

}  // namespace
}  // namespace fastserve

void bind_packing(py::module_& m) {
    using fastserve::PackedBuffer;
    py::class_<PackedBuffer>(m, "PackedWeight",
                             "A weight [n, k] in the layout that the matmul kernels stream.")
        .def(py::init([](const std::string& type, int64_t n, int64_t k) {
                 return PackedBuffer(fastserve::find_weight_type(type), n, k);
             }),
             py::arg("type"), py::arg("n"), py::arg("k"))
        .def("pack", fastserve::pack_gguf, py::arg("gguf_type"), py::arg("address"), py::arg("file_k"),
             py::kw_only(), py::arg("rows"), py::arg("cols"), py::arg("at") = 0,
             py::call_guard<py::gil_scoped_release>(),
             "Packs rows x cols of a GGUF matrix [N, file_k] at address as the output columns from `at` on.")
        .def(
            "pack_f32",
            [](PackedBuffer& buffer, uintptr_t address, int64_t ldx) {
                fastserve::pack_f32(reinterpret_cast<const float*>(address), ldx, buffer.view(),
                                    buffer.data());
            },
            py::arg("address"), py::arg("ldx"), py::call_guard<py::gil_scoped_release>(),
            "Packs fp32 [n, k] at address, rows ldx apart.")
        .def("dequantise", fastserve::dequantise, "fp32 [n, k]: what the packed weight means.")
        .def_property_readonly("n", [](const PackedBuffer& buffer) { return buffer.view().n; })
        .def_property_readonly("k", [](const PackedBuffer& buffer) { return buffer.view().k; })
        .def_property_readonly(
            "type",
            [](const PackedBuffer& buffer) { return fastserve::weight_type_name(buffer.view().type); })
        .def_property_readonly("nbytes", [](const PackedBuffer& buffer) { return buffer.num_bytes(); })
        .def_property_readonly("address", [](const PackedBuffer& buffer) {
            return reinterpret_cast<uintptr_t>(buffer.view().data);
        });
    m.def(
        "packed_type",
        [](uint32_t gguf_type) { return fastserve::weight_type_name(fastserve::packed_type(gguf_type)); },
        py::arg("gguf_type"), "The type of packed weight that keeps every bit of a GGUF type.");
}
