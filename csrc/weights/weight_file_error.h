// What is wrong with a weight file. Everything a reader refuses ends here: bytes of a file never reach an
// assert.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fastserve {

// Python sees it as fastserve.errors.WeightFileError.
class WeightFileError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;

    // "FILE: byte OFFSET: WHAT"
    WeightFileError(const std::string& file, uint64_t offset, const std::string& what)
        : std::runtime_error(file + ": byte " + std::to_string(offset) + ": " + what) {}
};

// A string of the file, fit to be shown in a message: quoted, unprintable bytes as \xNN, at most 64 bytes of
// it.
inline std::string quoted(std::string_view text) {
    constexpr size_t kMaxShownBytes = 64;
    constexpr char kHex[] = "0123456789abcdef";
    std::string shown = "'";
    for (unsigned char byte : text.substr(0, kMaxShownBytes)) {
        if (byte >= 0x20 && byte < 0x7f) {
            shown += static_cast<char>(byte);
        } else {
            shown += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
        }
    }
    return shown + (text.size() > kMaxShownBytes ? "...'" : "'");
}

}  // namespace fastserve
