// Messages from one rank to another, in order, through the mail ring of the pair (peer_memory.h), or its
// connection (socket_links.h).
//
// A message is its tag and length, then its bytes; a long one streams through while it is read. Sends to
// different ranks, and receives from different ranks, may run at once, each pair and direction on one thread
// at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "ring/peer_memory.h"
#include "ring/socket_links.h"

namespace fastserve {

class PointToPoint {
  public:
    // links: to the ranks of other hosts; null: there are none.
    PointToPoint(std::shared_ptr<PeerMemory> memory, int rank, std::shared_ptr<SocketLinks> links = nullptr);
    PointToPoint(const PointToPoint&) = delete;
    PointToPoint& operator=(const PointToPoint&) = delete;

    // False once the epoch was raised.
    bool send(int to, int64_t tag, const void* data, int64_t bytes);
    // The next message with that tag, which must have that length: throws std::length_error naming both.
    // Messages with other tags are kept for later receives.
    bool receive(int from, int64_t tag, void* data, int64_t bytes);
    // Whether a message (of any tag) has come that no receive has taken.
    bool has_mail(int from) const;
    // Keeps what has come, and says whether a message with that tag is among it. Waits only for the rest of a
    // message that has begun to come.
    bool takes_in(int from, int64_t tag);

  private:
    struct Header {
        int64_t tag, bytes;
    };
    struct Kept {
        int64_t tag;
        std::vector<uint8_t> data;
    };
    bool is_coming(int from) const;
    bool keep(int from, const Header& header);
    bool write(int to, const void* data, int64_t bytes);
    bool read(int from, void* data, int64_t bytes);
    bool wait(int peer, Flag& flag, uint64_t value);

    bool is_remote(int rank) const { return links_ && links_->reaches(rank); }

    std::shared_ptr<PeerMemory> memory_;
    std::shared_ptr<SocketLinks> links_;
    int rank_;
    std::vector<uint64_t> sent_, received_;  // bytes, per peer
    std::vector<std::deque<Kept>> kept_;     // per sender
};

}  // namespace fastserve
