// A file mapped read-only for as long as the object lives.
//
// The mapping is of the size that the file has when it is opened. Whoever cuts the file while it is mapped
// makes the kernel answer a later read with SIGBUS: replace a weight file by renaming a new one over it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace fastserve {

class MappedFile {
  public:
    MappedFile() = default;

    // Throws WeightFileError when `path` cannot be opened, is no regular file, or is empty.
    explicit MappedFile(const std::string& path);
    ~MappedFile();

    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::span<const uint8_t> bytes() const { return {data_, size_}; }

    // Pages that were read no longer count as this process's memory; who reads them again finds them in the
    // system's cache.
    void release_pages() const;

  private:
    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace fastserve
