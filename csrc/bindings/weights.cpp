// _C.GgufFile: what a GGUF file says, as plain Python objects, and where its tensors lie in memory.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "weights/gguf.h"

#include "bindings/bindings.h"

namespace py = pybind11;

using namespace fastserve;

namespace {

// Bytes that are no UTF-8 survive as lone surrogates, as in Python's own file names.
py::str decode(std::string_view text) {
    PyObject* decoded =
        PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape");
    if (decoded == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(decoded);
}

py::object to_python(const GgufScalar& scalar) {
    struct Visitor {
        py::object operator()(bool value) const { return py::bool_(value); }
        py::object operator()(int64_t value) const { return py::int_(value); }
        py::object operator()(uint64_t value) const { return py::int_(value); }
        py::object operator()(double value) const { return py::float_(value); }
        py::object operator()(std::string_view value) const { return decode(value); }
    };
    return std::visit(Visitor{}, scalar);
}

py::object to_python(const GgufValue& value) {
    if (!value.is_array()) return to_python(value.at(0));
    py::list items(value.count);
    for (uint64_t i = 0; i < value.count; ++i) items[i] = to_python(value.at(i));
    return items;
}

std::string type_name(const GgufTensor& tensor) {
    const GgufType* type = find_gguf_type(tensor.type);
    return type != nullptr ? type->name : "unknown";
}

py::tuple shape(const GgufTensor& tensor) {
    py::tuple dims(tensor.dims.size());
    for (size_t i = 0; i < dims.size(); ++i) dims[i] = tensor.dims[dims.size() - 1 - i];
    return dims;
}

// A file and its Python dictionaries, each made when it is first asked for (a vocabulary takes 10 ms).
class PyGgufFile {
  public:
    explicit PyGgufFile(const std::filesystem::path& path) {
        py::gil_scoped_release unlocked;
        file_ = std::make_unique<GgufFile>(path.string());
    }

    const GgufFile& file() const { return *file_; }

    py::object path() const {
        const std::string& name = file_->name();
        return py::reinterpret_steal<py::object>(
            PyUnicode_DecodeFSDefaultAndSize(name.data(), static_cast<Py_ssize_t>(name.size())));
    }

    py::dict metadata() {
        if (!metadata_) {
            py::dict values;
            for (const GgufPair& pair : file_->metadata()) values[decode(pair.key)] = to_python(pair.value);
            metadata_ = values;
        }
        return *metadata_;
    }

    // Of the tokenizer alone there are megabytes in objects of Python.
    void release_pages() {
        metadata_.reset();
        file_->release_pages();
    }

    py::dict tensors() {
        if (!tensors_) {
            py::dict found;
            for (const GgufTensor& tensor : file_->tensors()) found[decode(tensor.name)] = tensor;  // copies
            tensors_ = found;
        }
        return *tensors_;
    }

    const GgufTensor& tensor(const py::str& name) const {
        PyObject* encoded = PyUnicode_AsEncodedString(name.ptr(), "utf-8", "surrogateescape");
        if (encoded == nullptr) throw py::error_already_set();
        return file_->tensor(std::string(py::reinterpret_steal<py::bytes>(encoded)));
    }

  private:
    std::unique_ptr<GgufFile> file_;
    std::optional<py::dict> metadata_;
    std::optional<py::dict> tensors_;
};

// Messages hold bytes of file names, which need not be UTF-8.
void raise_weight_file_error(const WeightFileError& error) {
    const py::object type = py::module_::import("fastserve.errors").attr("WeightFileError");
    const std::string_view what = error.what();
    const py::object message = py::reinterpret_steal<py::object>(
        PyUnicode_DecodeUTF8(what.data(), static_cast<Py_ssize_t>(what.size()), "backslashreplace"));
    PyErr_SetObject(type.ptr(), message.ptr());
}

}  // namespace

void bind_weights(py::module_& m) {
    py::register_local_exception_translator([](std::exception_ptr raised) {
        try {
            if (raised) std::rethrow_exception(raised);
        } catch (const WeightFileError& error) {
            raise_weight_file_error(error);
        }
    });

    py::class_<GgufTensor>(m, "GgufTensor", "Where one tensor lies in a GGUF file.")
        .def_property_readonly("name", [](const GgufTensor& t) { return decode(t.name); })
        .def_readonly("type", &GgufTensor::type, "GGUF type id")
        .def_property_readonly("type_name", &type_name)
        .def_property_readonly("supported", [](const GgufTensor& t) { return type_supported(t.type); })
        .def_property_readonly("shape", &shape, "row-major: [N, K]")
        .def_readonly("n", &GgufTensor::n, "rows")
        .def_readonly("k", &GgufTensor::k, "columns")
        .def_readonly("offset", &GgufTensor::offset, "from the start of the file")
        .def_readonly("nbytes", &GgufTensor::bytes);

    py::class_<PyGgufFile>(m, "GgufFile", "A GGUF file, mapped as long as this object lives.")
        .def(py::init<const std::filesystem::path&>(), py::arg("path"))
        .def_property_readonly("path", &PyGgufFile::path)
        .def("release_pages", &PyGgufFile::release_pages,
             "What was read no longer counts as this process's memory; it may be read again.")
        .def_property_readonly("version", [](const PyGgufFile& f) { return f.file().version(); })
        .def_property_readonly("metadata", &PyGgufFile::metadata,
                               "key -> int | float | bool | str | list of one of these")
        .def_property_readonly("tensors", &PyGgufFile::tensors, "name -> GgufTensor")
        .def(
            "data_address",
            [](const PyGgufFile& f, const py::str& name) {
                return reinterpret_cast<uintptr_t>(f.file().tensor_data(f.tensor(name)));
            },
            py::arg("name"),
            "Valid as long as this object lives. Raises WeightFileError for an unsupported type.")
        .def(
            "read",
            [](const PyGgufFile& f, const py::str& name) {
                const GgufTensor& tensor = f.tensor(name);
                return py::bytes(reinterpret_cast<const char*>(f.file().tensor_data(tensor)), tensor.bytes);
            },
            py::arg("name"), "A copy of the tensor's bytes, as they lie in the file.");
}
