// The words of a step message, one by one and never past the end; csrc/program/slots.h describes the layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastserve {

[[noreturn]] inline void refuse(const std::string& rule, int64_t value) {
    throw std::invalid_argument("step: " + rule + ", got " + std::to_string(value));
}

class StepReader {
  public:
    StepReader(const int32_t* words, size_t num_words) : at_(words), end_(words + num_words) {}
    int32_t word() { return *take(1); }
    float real() {
        float value;
        std::memcpy(&value, take(1), 4);
        return value;
    }
    int32_t in_range(const char* name, int32_t low, int32_t high) {
        const int32_t value = word();
        if (value < low || value >= high)
            refuse(
                std::string(name) + " must be in [" + std::to_string(low) + ", " + std::to_string(high) + ")",
                value);
        return value;
    }
    const int32_t* take(int64_t count) {
        if (end_ - at_ < count) refuse("the message ends too early; words missing", count - (end_ - at_));
        const int32_t* from = at_;
        at_ += count;
        return from;
    }
    bool done() const { return at_ == end_; }

  private:
    const int32_t* at_;
    const int32_t* end_;
};

}  // namespace fastserve
