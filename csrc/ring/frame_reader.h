// Frames off one connection, payloads read straight to where they belong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "ring/frame.h"

namespace fastserve {

class FrameReader {
  public:
    enum class State { open, ended, broken, garbled };

    explicit FrameReader(int fd);

    // Reads until the connection has nothing more, or has ended, or pause().
    //   place(frame) -> uint8_t*   where the payload goes; null refuses the frame (State::garbled)
    //   finish(frame)              the payload is there
    template <class Place, class Finish>
    State read(const Place& place, const Finish& finish);

    // From within finish: read() returns, and what comes later stays where it is until the next read().
    void pause() { paused_ = true; }
    bool paused() const { return paused_; }
    int fd() const { return fd_; }
    int error() const { return error_; }  // of State::broken

  private:
    static constexpr size_t kBuffer = 16 * 1024;
    bool take(size_t bytes, void* to);  // from the buffer
    // Into the payload's place, and what follows it into the buffer.
    State receive();

    int fd_;
    int error_ = 0;
    bool paused_ = false;
    bool in_payload_ = false;
    Frame frame_{};
    uint8_t* to_ = nullptr;
    size_t left_ = 0;  // of the payload
    std::unique_ptr<uint8_t[]> buffer_;
    size_t begin_ = 0, end_ = 0;  // what of the buffer is not used yet
    bool would_block_ = false;
};

template <class Place, class Finish>
FrameReader::State FrameReader::read(const Place& place, const Finish& finish) {
    paused_ = false;
    would_block_ = false;
    for (;;) {
        if (in_payload_ && left_ > 0) {
            const size_t buffered = end_ - begin_ < left_ ? end_ - begin_ : left_;
            take(buffered, to_);
            to_ += buffered;
            left_ -= buffered;
        }
        if (in_payload_ && left_ == 0) {
            in_payload_ = false;
            finish(frame_);
            if (paused_) return State::open;
            continue;
        }
        if (!in_payload_ && take(sizeof frame_, &frame_)) {
            if (frame_.magic != kFrameMagic) return State::garbled;
            to_ = place(frame_);
            if (!to_) return State::garbled;
            left_ = frame_.bytes;
            in_payload_ = true;
            continue;
        }
        if (would_block_) return State::open;
        const State state = receive();
        if (state != State::open) return state;
    }
}

}  // namespace fastserve
