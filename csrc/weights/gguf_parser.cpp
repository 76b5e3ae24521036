#include <algorithm>
#include <bit>
#include <utility>

#include "weights/byte_cursor.h"
#include "weights/gguf.h"

namespace fastserve {
namespace {

constexpr uint64_t kMinStringBytes = 8;                            // an empty string: its length alone
constexpr uint64_t kMinPairBytes = kMinStringBytes + 4 + 1;        // key, value type, the smallest value
constexpr uint64_t kMinTensorBytes = kMinStringBytes + 4 + 4 + 8;  // name, num_dims, type, offset

std::string_view as_text(std::span<const uint8_t> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

// Fills a GgufFile, front to back.
class GgufFile::Parser {
  public:
    explicit Parser(GgufFile& file) : file_(file), cursor_(file.bytes_, file.name_) {}

    void run() {
        read_header();
        for (uint64_t i = 0; i < num_pairs_; ++i) read_pair();
        read_alignment();
        for (uint64_t i = 0; i < num_tensors_; ++i) read_tensor();
        place_tensors();
    }

  private:
    void read_header() {
        if (as_text(cursor_.take(4, "the magic")) != "GGUF") cursor_.fail(0, "is no GGUF file (no magic)");
        file_.version_ = cursor_.read<uint32_t>("the version");
        if (file_.version_ != 2 && file_.version_ != 3) {
            const bool swapped = file_.version_ != 0 && (file_.version_ & 0xffff) == 0;
            cursor_.fail(4, swapped ? "the file is big-endian; only little-endian files are supported"
                                    : "GGUF version " + std::to_string(file_.version_) +
                                          " is not supported; supported are 2 and 3");
        }
        num_tensors_ = cursor_.read_count("the number of tensors", kGgufMaxTensors, kMinTensorBytes);
        num_pairs_ = cursor_.read_count("the number of metadata pairs", kGgufMaxPairs, kMinPairBytes);
        file_.tensors_.reserve(num_tensors_);
        file_.metadata_.reserve(num_pairs_);
    }

    std::string_view read_string(const std::string& field, uint64_t max_bytes) {
        const uint64_t num_bytes = cursor_.read_count("the length of " + field, max_bytes, 1);
        return as_text(cursor_.take(num_bytes, field));
    }

    void read_pair() {
        const uint64_t start = cursor_.offset();
        const std::string_view key = read_string("a metadata key", kGgufMaxNameBytes);
        if (!file_.pair_idx_.emplace(key, file_.metadata_.size()).second) {
            cursor_.fail(start, "the metadata key " + quoted(key) + " comes twice");
        }
        file_.metadata_.push_back({key, read_value(quoted(key))});
    }

    GgufValue read_value(const std::string& field) {
        const GgufValueType type = read_value_type(field);
        if (type != GgufValueType::array) return read_elements(type, type, 1, field);
        const uint64_t start = cursor_.offset();
        const GgufValueType element_type = read_value_type(field);
        if (element_type == GgufValueType::array) {
            cursor_.fail(start, field + " is an array of arrays, which is not supported");
        }
        const uint64_t element_bytes = std::max<uint64_t>(
            element_type == GgufValueType::string ? kMinStringBytes : gguf_value_bytes(element_type), 1);
        const uint64_t count =
            cursor_.read_count("the length of array " + field, kGgufMaxArrayElements, element_bytes);
        return read_elements(type, element_type, count, field);
    }

    GgufValueType read_value_type(const std::string& field) {
        const uint64_t start = cursor_.offset();
        const auto id = cursor_.read<uint32_t>("the value type of " + field);
        if (id > static_cast<uint32_t>(GgufValueType::f64)) {
            cursor_.fail(start, field + " has the unknown value type " + std::to_string(id));
        }
        return static_cast<GgufValueType>(id);
    }

    // `count` was checked against the bytes that are left, so that the product cannot overflow.
    GgufValue read_elements(GgufValueType type, GgufValueType element_type, uint64_t count,
                            const std::string& field) {
        GgufValue value{type, element_type, count, {}, {}};
        if (element_type == GgufValueType::string) {
            value.strings.reserve(count);
            for (uint64_t i = 0; i < count; ++i) {
                value.strings.push_back(read_string(field, kGgufMaxStringBytes));
            }
            return value;
        }
        const uint64_t start = cursor_.offset();
        value.bytes = cursor_.take(count * gguf_value_bytes(element_type), field);
        if (element_type == GgufValueType::boolean) {
            const auto bad =
                std::find_if(value.bytes.begin(), value.bytes.end(), [](uint8_t b) { return b > 1; });
            if (bad != value.bytes.end()) {
                cursor_.fail(start + static_cast<uint64_t>(bad - value.bytes.begin()),
                             field + " holds a bool that is neither 0 nor 1");
            }
        }
        return value;
    }

    void read_alignment() {
        const GgufValue* value = file_.find_value("general.alignment");
        if (value == nullptr) return;
        const uint64_t offset =
            value->bytes.empty() ? 0 : static_cast<uint64_t>(value->bytes.data() - file_.bytes_.data());
        if (value->type != GgufValueType::u32) cursor_.fail(offset, "general.alignment is no uint32");
        alignment_ = std::get<uint64_t>(value->at(0));
        if (!std::has_single_bit(alignment_) || alignment_ < kGgufMinAlignment ||
            alignment_ > kGgufMaxAlignment) {
            cursor_.fail(offset, "general.alignment must be a power of two in [" +
                                     std::to_string(kGgufMinAlignment) + ", " +
                                     std::to_string(kGgufMaxAlignment) + "], got " +
                                     std::to_string(alignment_));
        }
    }

    void read_tensor() {
        const uint64_t start = cursor_.offset();
        const std::string_view name = read_string("a tensor name", kGgufMaxNameBytes);
        const std::string shown = "tensor " + quoted(name);
        if (!file_.tensor_idx_.emplace(name, file_.tensors_.size()).second) {
            cursor_.fail(start, shown + " comes twice");
        }
        GgufTensor tensor{std::string(name), 0, {}, 0, 0, 1, 1};
        const uint64_t weights = read_dims(shown, tensor);
        tensor.type = cursor_.read<uint32_t>("the type of " + shown);
        measure(shown, weights, tensor);
        const uint64_t offset_at = cursor_.offset();
        tensor.offset = cursor_.read<uint64_t>("the offset of " + shown);
        if (tensor.offset % alignment_ != 0) {
            cursor_.fail(offset_at, shown + " has offset " + std::to_string(tensor.offset) +
                                        ", not a multiple of the alignment " + std::to_string(alignment_));
        }
        file_.tensors_.push_back(std::move(tensor));
    }

    // Returns the number of weights.
    uint64_t read_dims(const std::string& shown, GgufTensor& tensor) {
        const uint64_t start = cursor_.offset();
        const auto num_dims = cursor_.read<uint32_t>("the number of dimensions of " + shown);
        if (num_dims > kGgufMaxDims) {
            cursor_.fail(start, shown + " has " + std::to_string(num_dims) + " dimensions, the limit is " +
                                    std::to_string(kGgufMaxDims));
        }
        int64_t weights = 1;
        for (uint32_t i = 0; i < num_dims; ++i) {
            const uint64_t at = cursor_.offset();
            const auto dim = cursor_.read<uint64_t>("a dimension of " + shown);
            if (dim == 0 || dim > kGgufMaxDimension) {
                cursor_.fail(at, "dimension " + std::to_string(i) + " of " + shown +
                                     " must be in [1, 2^40], got " + std::to_string(dim));
            }
            if (__builtin_mul_overflow(weights, static_cast<int64_t>(dim), &weights)) {
                cursor_.fail(at, "the dimensions of " + shown + " multiply to more than 2^63");
            }
            tensor.dims.push_back(dim);
        }
        if (num_dims > 0) tensor.k = static_cast<int64_t>(tensor.dims[0]);
        tensor.n = weights / tensor.k;
        return static_cast<uint64_t>(weights);
    }

    void measure(const std::string& shown, uint64_t weights, GgufTensor& tensor) {
        const GgufType* type = find_gguf_type(tensor.type);
        if (type == nullptr) return;  // no size to check; tensor_data refuses it
        const uint64_t type_at = cursor_.offset() - sizeof(uint32_t);
        if (static_cast<uint64_t>(tensor.k) % type->block_weights != 0) {
            cursor_.fail(type_at, shown + " has rows of " + std::to_string(tensor.k) + " weights, " +
                                      type->name + " needs a multiple of " +
                                      std::to_string(type->block_weights));
        }
        if (__builtin_mul_overflow(weights / type->block_weights, uint64_t{type->block_bytes},
                                   &tensor.bytes)) {
            cursor_.fail(type_at, shown + " would have more than 2^64 bytes");
        }
    }

    // Makes offsets absolute, now that it is known where the data section starts, and checks them against the
    // end of the file and against each other.
    void place_tensors() {
        const uint64_t infos_end = cursor_.offset();  // at most 2^63: aligning it cannot overflow
        const uint64_t data_start = align(infos_end);
        const uint64_t size = file_.bytes_.size();
        for (GgufTensor& tensor : file_.tensors_) {
            if (data_start > size || tensor.offset > size - data_start ||
                tensor.bytes > size - data_start - tensor.offset) {
                cursor_.fail(size, "the file ends before tensor " + quoted(tensor.name) + " (" +
                                       std::to_string(tensor.bytes) + " bytes at " +
                                       std::to_string(data_start) + " + " + std::to_string(tensor.offset) +
                                       ") does");
            }
            tensor.offset += data_start;
        }
        const uint64_t end = std::max(infos_end, check_overlap());
        const bool sized = std::all_of(file_.tensors_.begin(), file_.tensors_.end(),
                                       [](const GgufTensor& t) { return find_gguf_type(t.type) != nullptr; });
        if (sized && size > align(end)) {
            cursor_.fail(align(end), "the file goes on for " + std::to_string(size - align(end)) +
                                         " bytes after its last tensor");
        }
    }

    // Returns where the last tensor ends, 0 without tensors.
    uint64_t check_overlap() const {
        std::vector<const GgufTensor*> ordered;
        ordered.reserve(file_.tensors_.size());
        for (const GgufTensor& tensor : file_.tensors_) ordered.push_back(&tensor);
        std::sort(ordered.begin(), ordered.end(),
                  [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
        uint64_t end = 0;
        const GgufTensor* last = nullptr;
        for (const GgufTensor* tensor : ordered) {
            if (tensor->offset < end) {
                cursor_.fail(tensor->offset,
                             "tensors " + quoted(last->name) + " and " + quoted(tensor->name) + " overlap");
            }
            end = tensor->offset + tensor->bytes;
            last = tensor;
        }
        return end;
    }

    uint64_t align(uint64_t offset) const { return (offset + alignment_ - 1) & ~(alignment_ - 1); }

    GgufFile& file_;
    ByteCursor cursor_;
    uint64_t num_tensors_ = 0;
    uint64_t num_pairs_ = 0;
    uint64_t alignment_ = kGgufDefaultAlignment;
};

void GgufFile::parse() {
    Parser(*this).run();
}

}  // namespace fastserve
