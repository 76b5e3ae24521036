#include "program/mailbox.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "bindings/bindings.h"
#include "program/program.h"

namespace py = pybind11;
using fastserve::Mailbox;

namespace {

std::shared_ptr<Mailbox> local_mailbox(size_t capacity) {
    auto pages = std::make_shared<fastserve::Pages>(Mailbox::bytes(capacity));
    auto* mailbox = new Mailbox(pages->data(), capacity, 1, true);
    return {mailbox, [pages](Mailbox* m) { delete m; }};
}

std::shared_ptr<Mailbox> mailbox_at(uintptr_t address, size_t capacity, int num_readers, bool create,
                                    py::object owner) {
    auto* mailbox = new Mailbox(reinterpret_cast<void*>(address), capacity, num_readers, create);
    auto* held = new py::object(std::move(owner));
    return {mailbox, [held](Mailbox* m) {
                delete m;
                py::gil_scoped_acquire gil;
                delete held;
            }};
}

std::optional<py::bytes> read_message(Mailbox& mailbox, int reader, int spin_us, int timeout_ms) {
    std::vector<uint8_t> message;
    Mailbox::Read outcome;
    {
        py::gil_scoped_release release;
        outcome = mailbox.read(reader, message, spin_us, timeout_ms);
    }
    if (outcome == Mailbox::Read::timeout) return std::nullopt;
    if (outcome == Mailbox::Read::closed) {
        PyErr_SetString(PyExc_EOFError, "the mailbox is closed");
        throw py::error_already_set();
    }
    return py::bytes(reinterpret_cast<const char*>(message.data()), message.size());
}

bool write_message(Mailbox& mailbox, const py::bytes& message, int timeout_ms) {
    char* data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(message.ptr(), &data, &size)) throw py::error_already_set();
    py::gil_scoped_release release;
    return mailbox.write(data, static_cast<size_t>(size), timeout_ms);
}

}  // namespace

void bind_mailbox(py::module_& m) {
    py::class_<Mailbox, std::shared_ptr<Mailbox>>(m, "Mailbox")
        .def_static("local", &local_mailbox, py::arg("capacity"),
                    "A mailbox inside this process, with one reader.")
        .def_static("at", &mailbox_at, py::arg("address"), py::arg("capacity"), py::arg("num_readers"),
                    py::arg("create"), py::arg("owner"), "A mailbox in memory that `owner` keeps mapped.")
        .def_static("num_bytes", &Mailbox::bytes, py::arg("capacity"))
        .def("write", &write_message, py::arg("message"), py::arg("timeout_ms"))
        .def("read", &read_message, py::arg("reader"), py::arg("spin_us"), py::arg("timeout_ms"),
             "The next message, None after the timeout; EOFError once closed and empty.")
        .def("close", &Mailbox::close);
}
