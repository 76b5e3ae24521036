// _cuda: the CUDA ops on addresses, sizes and a stream; fastserve/_cuda.pyi says how Python sees them. Works
// without a GPU until something is called.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "cuda/device_info.h"
#include "cuda/exchange_buffer.h"
#include "cuda/launch.h"

namespace py = pybind11;
using fastserve::DataType;
using namespace fastserve::cuda;

namespace {

Stream stream_at(uintptr_t stream) {
    return reinterpret_cast<Stream>(stream);
}

Matrix matrix_at(uintptr_t data, int64_t ld) {
    return {reinterpret_cast<void*>(data), ld};
}

template <typename T>
const T* pointer_at(uintptr_t address) {
    return reinterpret_cast<const T*>(address);
}

MatmulCall product(uintptr_t x, int64_t ldx, uintptr_t w, int64_t ldw, uintptr_t y, int64_t ldy, int32_t m,
                   int32_t n, int32_t k, int32_t type, int32_t y_type) {
    return {matrix_at(x, ldx),
            matrix_at(w, ldw),
            matrix_at(y, ldy),
            nullptr,
            m,
            n,
            k,
            static_cast<DataType>(type),
            static_cast<DataType>(y_type),
            Epilogue::none};
}

// The word of a group's epoch at `address`, in memory that `owner` keeps mapped; 0 and None: the buffer's
// own.
std::unique_ptr<ExchangeBuffer> buffer_of(int rank, int size, uintptr_t address, const py::object&) {
    return std::make_unique<ExchangeBuffer>(rank, size, reinterpret_cast<uint32_t*>(address));
}

std::vector<uintptr_t> triton_areas(const ExchangeBuffer& buffer) {
    const Exchange& exchange = buffer.exchange();
    std::vector<uintptr_t> areas;
    for (int rank = 0; rank < exchange.size; ++rank)
        areas.push_back(reinterpret_cast<uintptr_t>(exchange.buffers[rank]) +
                        triton_area_offset(exchange.size));
    return areas;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.attr("EPILOGUES") = py::make_tuple("none", "silu", "gelu_tanh", "relu", "silu_mul");
    m.attr("TRITON_AREA_BYTES") = kTritonAreaBytes;
    m.def("device_count", &device_count);
    m.def(
        "device_info",
        [](int32_t device) {
            const DeviceInfo info = device_info(device);
            return py::make_tuple(info.name, info.total_bytes, info.capability);
        },
        py::arg("device"));
    m.def("bus_id", &bus_id);
    m.def("can_reach", &can_reach, py::arg("bus_id"));
    m.def("exchange_bytes", &exchange_bytes, py::arg("size"));

    py::class_<ExchangeBuffer>(m, "ExchangeBuffer")
        .def(py::init(&buffer_of), py::arg("rank"), py::arg("size"), py::arg("epoch_address") = 0,
             py::arg("owner") = py::none(), py::keep_alive<1, 5>())
        .def_property_readonly("triton_areas", &triton_areas)
        .def_property_readonly(
            "epoch_address",
            [](const ExchangeBuffer& self) { return reinterpret_cast<uintptr_t>(self.exchange().epoch); })
        .def_property_readonly("handle", [](const ExchangeBuffer& self) { return py::bytes(self.handle()); })
        .def("connect",
             [](ExchangeBuffer& self, const std::vector<py::bytes>& handles) {
                 self.connect(std::vector<std::string>(handles.begin(), handles.end()));
             })
        .def("raise_epoch", &ExchangeBuffer::raise_epoch);

    m.def("all_reduce", [](const ExchangeBuffer& buffer, uintptr_t x, int64_t ldx, uintptr_t out, int64_t ldo,
                           int32_t rows, int32_t d, int32_t type, uintptr_t stream) {
        all_reduce(buffer.exchange(),
                   {matrix_at(x, ldx), matrix_at(out, ldo), rows, d, static_cast<DataType>(type)},
                   stream_at(stream));
    });
    m.def("add_rms_norm",
          [](uintptr_t x, int64_t ldx, uintptr_t residual, int64_t ldr, uintptr_t weight, float eps,
             uintptr_t out, int64_t ldo, int32_t rows, int32_t d, int32_t type, uintptr_t stream) {
              add_rms_norm({matrix_at(x, ldx), matrix_at(residual, ldr), matrix_at(out, ldo),
                            pointer_at<float>(weight), eps, rows, d, static_cast<DataType>(type)},
                           stream_at(stream));
          });
    m.def("all_reduce_add_rms_norm",
          [](const ExchangeBuffer& buffer, uintptr_t x, int64_t ldx, uintptr_t residual, int64_t ldr,
             uintptr_t weight, float eps, uintptr_t out, int64_t ldo, int32_t rows, int32_t d, int32_t x_type,
             int32_t type, uintptr_t stream) {
              all_reduce_add_rms_norm(buffer.exchange(),
                                      {matrix_at(x, ldx), matrix_at(residual, ldr), matrix_at(out, ldo),
                                       pointer_at<float>(weight), eps, rows, d, static_cast<DataType>(x_type),
                                       static_cast<DataType>(type)},
                                      stream_at(stream));
          });
    m.def("matmul", [](uintptr_t x, int64_t ldx, uintptr_t w, int64_t ldw, uintptr_t y, int64_t ldy,
                       int32_t m, int32_t n, int32_t k, int32_t type, int32_t y_type, uintptr_t bias,
                       int32_t epilogue, uintptr_t stream) {
        MatmulCall call = product(x, ldx, w, ldw, y, ldy, m, n, k, type, y_type);
        call.bias = pointer_at<float>(bias);
        call.epilogue = static_cast<Epilogue>(epilogue);
        matmul(call, stream_at(stream));
    });
    m.def("matmul_all_reduce",
          [](const ExchangeBuffer& buffer, uintptr_t x, int64_t ldx, uintptr_t w, int64_t ldw, uintptr_t y,
             int64_t ldy, int32_t m, int32_t n, int32_t k, int32_t type, int32_t y_type, uintptr_t stream) {
              matmul_all_reduce(buffer.exchange(), product(x, ldx, w, ldw, y, ldy, m, n, k, type, y_type),
                                stream_at(stream));
          });
    m.def("swap", [](uintptr_t from, uintptr_t to, uintptr_t from_blocks, uintptr_t to_blocks,
                     int32_t num_blocks, int64_t block_bytes, uintptr_t stream) {
        swap({pointer_at<void>(from), reinterpret_cast<void*>(to), pointer_at<int32_t>(from_blocks),
              pointer_at<int32_t>(to_blocks), num_blocks, block_bytes},
             stream_at(stream));
    });
}
