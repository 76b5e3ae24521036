// What socket_links.cpp and socket_receiver.cpp know of a rank on another host.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <optional>
#include <vector>

#include "ring/socket_links.h"

namespace fastserve {

constexpr int kLookMs = 50;        // how late a raised epoch may be noticed by who waits for a socket
constexpr int kObituaryMs = 1000;  // how long after a stream the obituary may end

inline bool is_silence(int error) {
    return error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH || error == ENETDOWN;
}

struct SocketLinks::Peer {
    RankSlot slot{};  // this rank's view: another of this host may have read further
    int rank;
    pid_t pid;  // pid_of its number
    std::vector<FrameReader> streams;
    std::vector<bool> open;  // of each stream
    int mail, obituary;
    std::mutex sending;              // on the streams
    uint32_t slot_bytes[2][2] = {};  // [area][half] arrived so far
    std::optional<Frame> last;       // on stream 0, whose parts on other streams are missing

    std::vector<int> descriptors() const {
        std::vector<int> all;
        for (const FrameReader& stream : streams) all.push_back(stream.fd());
        all.insert(all.end(), {mail, obituary});
        return all;
    }
};

// What one stream still has to send: a header and its payload.
struct SocketLinks::Outgoing {
    Frame frame{};
    iovec left[2] = {};

    void set(FrameKind kind, Area area, uint64_t number, uint64_t done, const void* data, int64_t begin,
             int64_t end, int64_t total) {
        frame = {.magic = kFrameMagic,
                 .kind = kind,
                 .area = static_cast<uint8_t>(area),
                 .bytes = static_cast<uint32_t>(end - begin),
                 .number = number,
                 .done = done,
                 .offset = static_cast<uint32_t>(begin),
                 .total = static_cast<uint32_t>(total)};
        left[0] = {&frame, sizeof frame};
        left[1] = {const_cast<uint8_t*>(static_cast<const uint8_t*>(data)) + begin, frame.bytes};
    }
    bool is_sent() const { return left[0].iov_len + left[1].iov_len == 0; }
    void advance(size_t bytes) {
        for (iovec& part : left) {
            const size_t sent = std::min(bytes, part.iov_len);
            part.iov_base = static_cast<uint8_t*>(part.iov_base) + sent;
            part.iov_len -= sent;
            bytes -= sent;
        }
    }
};

}  // namespace fastserve
