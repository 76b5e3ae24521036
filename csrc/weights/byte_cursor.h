// Reads little-endian fields from a run of bytes, in order. Every read is checked against the end first, and
// a refusal names the file, the offset of the field and the field.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "weights/weight_file_error.h"

namespace fastserve {

static_assert(std::endian::native == std::endian::little, "weight files are read in place as little-endian");

class ByteCursor {
  public:
    ByteCursor(std::span<const uint8_t> bytes, const std::string& file) : bytes_(bytes), file_(file) {}

    uint64_t offset() const { return offset_; }
    uint64_t remaining() const { return bytes_.size() - offset_; }

    [[noreturn]] void fail(uint64_t offset, const std::string& what) const {
        throw WeightFileError(file_, offset, what);
    }

    std::span<const uint8_t> take(uint64_t num_bytes, const std::string& field) {
        if (num_bytes > remaining()) {
            fail(offset_, field + " needs " + std::to_string(num_bytes) + " bytes, the file has " +
                              std::to_string(remaining()) + " more");
        }
        const auto taken = bytes_.subspan(offset_, num_bytes);
        offset_ += num_bytes;
        return taken;
    }

    template <typename Integer>
    Integer read(const std::string& field) {
        Integer value;
        std::memcpy(&value, take(sizeof value, field).data(), sizeof value);
        return value;
    }

    // A count of things of at least `min_bytes` each: refused above `limit`, or when so many cannot follow.
    // What is allocated for a count is thus never more than a small multiple of the file.
    uint64_t read_count(const std::string& field, uint64_t limit, uint64_t min_bytes) {
        const uint64_t start = offset_;
        const auto count = read<uint64_t>(field);
        if (count > limit) {
            fail(start, field + " is " + std::to_string(count) + ", the limit is " + std::to_string(limit));
        }
        if (count > remaining() / min_bytes) {
            fail(start, field + " is " + std::to_string(count) + ", more than the file's remaining " +
                            std::to_string(remaining()) + " bytes can hold");
        }
        return count;
    }

  private:
    std::span<const uint8_t> bytes_;
    const std::string& file_;
    uint64_t offset_ = 0;
};

}  // namespace fastserve
