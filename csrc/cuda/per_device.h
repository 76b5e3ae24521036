// What is asked of each device once.
#pragma once

namespace fastserve::cuda {

// A number above zero that each device has. From any thread: two who come first at once both ask, and are
// told the same.
class PerDevice {
  public:
    template <class Ask>
    int get(int device, const Ask& ask) {
        if (device >= kMaxDevices) return ask();
        int value = read(device);
        if (value == 0) write(device, value = ask());
        return value;
    }

  private:
    static constexpr int kMaxDevices = 64;
    // Out of line: <atomic> is a second of nvcc's time in each file.
    int read(int device);
    void write(int device, int value);

    int known_[kMaxDevices] = {};
};

}  // namespace fastserve::cuda
