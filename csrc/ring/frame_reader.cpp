#include "ring/frame_reader.h"

#include <sys/uio.h>

#include <cerrno>
#include <cstring>

namespace fastserve {

FrameReader::FrameReader(int fd) : fd_(fd), buffer_(std::make_unique<uint8_t[]>(kBuffer)) {}

bool FrameReader::take(size_t bytes, void* to) {
    if (end_ - begin_ < bytes) return false;
    if (bytes > 0) std::memcpy(to, buffer_.get() + begin_, bytes);
    begin_ += bytes;
    if (begin_ == end_) begin_ = end_ = 0;
    return true;
}

FrameReader::State FrameReader::receive() {
    if (begin_ > 0) std::memmove(buffer_.get(), buffer_.get() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
    const size_t direct = in_payload_ ? left_ : 0;
    const iovec to[2] = {{to_, direct}, {buffer_.get() + end_, kBuffer - end_}};
    const int first = direct > 0 ? 0 : 1;
    const ssize_t got = readv(fd_, to + first, 2 - first);
    if (got == 0) return State::ended;
    if (got < 0) {
        if (errno == EINTR) return State::open;
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
            would_block_ = true;
            return State::open;
        }
        error_ = errno;
        return State::broken;
    }
    const size_t bytes = static_cast<size_t>(got), into_payload = bytes < direct ? bytes : direct;
    to_ += into_payload;
    left_ -= into_payload;
    end_ += bytes - into_payload;
    // A read that did not fill what it was given has emptied the connection; poll tells of more.
    would_block_ = bytes < direct + kBuffer - (end_ - (bytes - into_payload));
    return State::open;
}

}  // namespace fastserve
