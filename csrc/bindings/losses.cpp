#include "bindings/losses.h"

#include <pybind11/pybind11.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>

namespace py = pybind11;

namespace fastserve {

namespace {

// Raises, in the interpreter's own time, what a signal handler raised while there was no frame to raise it
// in.
int raise_pending(void* error) {
    const std::unique_ptr<py::error_already_set> raised(static_cast<py::error_already_set*>(error));
    raised->restore();
    return -1;
}

}  // namespace

bool interrupted() {
    if (syscall(SYS_gettid) != getpid() || !Py_IsInitialized()) return false;
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() == 0) return false;
    auto raised = std::make_unique<py::error_already_set>();
    if (Py_AddPendingCall(&raise_pending, raised.get()) == 0) static_cast<void>(raised.release());
    return true;
}

void raise_loss(const SharedRegion& region) {
    if (Py_MakePendingCalls() < 0) throw py::error_already_set();
    const py::object type = py::module_::import("fastserve.errors").attr("RankLostError");
    PyErr_SetString(type.ptr(), region.loss_text().c_str());
    throw py::error_already_set();
}

}  // namespace fastserve
