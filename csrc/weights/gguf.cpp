#include "weights/gguf.h"

#include <utility>

namespace fastserve {
namespace {

std::string supported_types() {
    std::string names;
    for (const GgufType& type : kGgufTypes) {
        if (type.supported) names += (names.empty() ? "" : ", ") + std::string(type.name);
    }
    return names;
}

}  // namespace

GgufFile::GgufFile(MappedFile mapping, std::span<const uint8_t> bytes, std::string name)
    : mapping_(std::move(mapping)), bytes_(bytes), name_(std::move(name)) {
    parse();
}

GgufFile::GgufFile(const std::string& path) : mapping_(path), bytes_(mapping_.bytes()), name_(path) {
    parse();
}

GgufFile GgufFile::from_memory(std::span<const uint8_t> bytes, std::string name) {
    return GgufFile(MappedFile(), bytes, std::move(name));
}

const GgufValue* GgufFile::find_value(std::string_view key) const {
    const auto found = pair_idx_.find(key);
    return found == pair_idx_.end() ? nullptr : &metadata_[found->second].value;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
    const auto found = tensor_idx_.find(name);
    return found == tensor_idx_.end() ? nullptr : &tensors_[found->second];
}

const GgufTensor& GgufFile::tensor(std::string_view name) const {
    const GgufTensor* found = find_tensor(name);
    if (found == nullptr) throw WeightFileError(name_ + ": has no tensor " + quoted(name));
    return *found;
}

const uint8_t* GgufFile::tensor_data(const GgufTensor& tensor) const {
    if (!type_supported(tensor.type)) {
        const GgufType* type = find_gguf_type(tensor.type);
        throw WeightFileError(name_, tensor.offset,
                              "tensor " + quoted(tensor.name) + " has type " +
                                  (type ? type->name : "unknown") + " (" + std::to_string(tensor.type) +
                                  "), which is not supported; supported are " + supported_types());
    }
    return bytes_.data() + tensor.offset;
}

}  // namespace fastserve
