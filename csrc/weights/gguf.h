// GGUF, versions 2 and 3: a header, metadata pairs, tensor infos, padding, tensor bytes.
//
//   "GGUF" | u32 version | u64 num_tensors | u64 num_pairs
//   pairs:   string key | u32 value type | value          string: u64 length | bytes
//   tensors: string name | u32 num_dims | u64 dims[num_dims] | u32 type | u64 offset in the data section
//   zeros up to a multiple of general.alignment | data section
//
// A file is hostile until proven otherwise: every count, length, offset and dimension is bounded before it is
// used, sums and products are checked for overflow, and what is allocated is bounded by the file's size.
// Nothing is copied but tensor names; metadata and tensors are views of the mapping. Format:
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "weights/gguf_type.h"
#include "weights/gguf_value.h"
#include "weights/mapped_file.h"
#include "weights/weight_file_error.h"

namespace fastserve {

// Limits far above any real model, and far below where arithmetic on them could overflow.
constexpr uint64_t kGgufMaxPairs = 1 << 16;            // real files: under 100
constexpr uint64_t kGgufMaxTensors = 1 << 20;          // real files: under 10,000
constexpr uint64_t kGgufMaxNameBytes = (1 << 16) - 1;  // of keys and tensor names; the format's own limit
constexpr uint64_t kGgufMaxStringBytes = 64 << 20;     // the longest: a whole tokenizer.json
constexpr uint64_t kGgufMaxArrayElements = 1 << 26;    // the longest: merges of a vocabulary of 256,000
constexpr uint32_t kGgufMaxDims = 4;                   // the format's own limit
constexpr uint64_t kGgufMaxDimension = 1ull << 40;     // weights along one dimension
constexpr uint64_t kGgufMaxAlignment = 1 << 20;        // bytes
constexpr uint64_t kGgufMinAlignment = 8;              // the format's own limit; f32 may be read in place
constexpr uint64_t kGgufDefaultAlignment = 32;

struct GgufTensor {
    std::string name;
    uint32_t type;               // GGUF type id; find_gguf_type tells its name, null for one not known
    std::vector<uint64_t> dims;  // innermost first, as in the file
    uint64_t offset;             // from the start of the file, a multiple of the alignment
    uint64_t bytes;              // 0 when the type is not known
    int64_t n;                   // rows: the product of all dimensions but the innermost
    int64_t k;                   // columns: the innermost dimension, contiguous
};

class GgufFile {
  public:
    // Throws WeightFileError.
    explicit GgufFile(const std::string& path);

    // Reads bytes that outlive the returned object; `name` stands for the file in messages.
    static GgufFile from_memory(std::span<const uint8_t> bytes, std::string name);

    const std::string& name() const { return name_; }
    uint32_t version() const { return version_; }

    // In the file's order; keys are unique.
    const std::vector<GgufPair>& metadata() const { return metadata_; }
    const GgufValue* find_value(std::string_view key) const;  // null: no such key

    // In the file's order; names are unique, byte ranges lie inside the file and do not overlap.
    const std::vector<GgufTensor>& tensors() const { return tensors_; }
    const GgufTensor* find_tensor(std::string_view name) const;  // null: no such tensor
    const GgufTensor& tensor(std::string_view name) const;       // throws WeightFileError: no such tensor

    // The tensor's `bytes` bytes. Throws WeightFileError when its type is not supported: a file with such
    // tensors can be examined, and is refused when one of them is loaded.
    const uint8_t* tensor_data(const GgufTensor& tensor) const;

    // After tensors were packed: see MappedFile.
    void release_pages() const { mapping_.release_pages(); }

  private:
    class Parser;

    GgufFile(MappedFile mapping, std::span<const uint8_t> bytes, std::string name);
    void parse();  // gguf_parser.cpp

    MappedFile mapping_;  // empty when the bytes are somebody else's
    std::span<const uint8_t> bytes_;
    std::string name_;
    uint32_t version_ = 0;
    std::vector<GgufPair> metadata_;
    std::vector<GgufTensor> tensors_;
    std::unordered_map<std::string_view, size_t> pair_idx_;    // keys are views of the file's bytes
    std::unordered_map<std::string_view, size_t> tensor_idx_;  // likewise
};

}  // namespace fastserve
