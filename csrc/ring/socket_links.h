// A rank's connections to the ranks of other hosts (TCP, or any other stream socket): the second transport.
//
// What a rank of this host would write into an inbox (peer_memory.h), a rank of another host sends as frames,
// and a thread of the receiver writes it there and raises the flag. So algorithms wait for a peer alike
// wherever it is, and know of sockets only when they push.
//
// A peer is reached over several *streams*, each a connection: a large payload is cut into a part for each,
// all under way at once. Flags are raised in the order in which they were sent: the last part of every slot,
// and what has no payload, goes over stream 0, which is not read on while parts of other streams are missing.
// Nobody sends what the receiver has no room for (collectives.h), so no stream ever waits for a slow reader
// behind it. Messages have a connection of their own and are read by whoever receives them, straight to where
// they belong.
//
// Loss. A connection that ends without a goodbye, or breaks, raises the epoch of this host's region; a region
// whose epoch was raised closes its connections, so the other hosts learn of it. Why it was raised goes over
// a connection of its own, the *obituary*, which nothing can fill or cut: who finds a stream ended reads
// there whether its peer died or only passes on that another rank did. A host that is cut off is noticed by
// the kernel: whoever makes the connections sets how long it may be silent (keepalive, TCP_USER_TIMEOUT).
//
// The links of a level (hierarchy.h) number its ranks from 0, but losses are told and passed on as those of
// the whole group: `number` is a rank's number there, and its region's epoch is raised with the level's.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "ring/frame.h"
#include "ring/frame_reader.h"
#include "ring/peer_memory.h"

namespace fastserve {

class SocketLinks {
  public:
    struct Connections {
        int rank;
        int number;                // of that rank in the whole group
        std::vector<int> streams;  // descriptors, at least one
        int mail, obituary;
    };
    static constexpr size_t kMaxStreams = 16;

    // Takes the descriptors over and makes them non-blocking. levels: regions whose epochs are raised with
    // that of the memory's region; whole: the whole group's, null: the memory's. Throws
    // std::invalid_argument, std::system_error.
    SocketLinks(std::shared_ptr<PeerMemory> memory, int rank, const std::vector<Connections>& peers,
                std::vector<std::shared_ptr<SharedRegion>> levels = {},
                std::shared_ptr<SharedRegion> whole = nullptr);
    ~SocketLinks();  // leave()
    SocketLinks(const SocketLinks&) = delete;
    SocketLinks& operator=(const SocketLinks&) = delete;

    bool reaches(int rank) const { return peers_[static_cast<size_t>(rank)] != nullptr; }
    RankSlot& slot(int rank) const;  // of a rank that is reached: whom its flags come from
    void set_interrupted(bool (*interrupted)()) { interrupted_ = interrupted; }

    // All of these return false once the epoch was raised.

    // Fills the slot of this rank in the peer's area and raises its flag there; says too which collective
    // this rank has finished last. Returns when `data` may be written again. One thread at a time, also for
    // tell_done().
    bool push(Area area, int to, uint64_t number, uint64_t done, const void* data, int64_t bytes);
    bool tell_done(int to, uint64_t done);
    // Bytes of messages. One thread at a time for each peer and direction.
    bool send_mail(int to, const void* data, size_t bytes);
    bool receive_mail(int from, void* data, size_t bytes);
    bool has_mail(int from) const;

    // Says goodbye, waits until the peers have what was sent, and closes. Idempotent; nothing may follow.
    void leave();

  private:
    struct Peer;
    struct Outgoing;

    void receive();
    void read_stream(Peer& peer, size_t stream);
    void arrived(Peer& peer, const Frame& frame);
    bool finish_slot(Peer& peer, const Frame& frame);
    bool has_left(const Peer& peer) const;
    bool ended_early(const Peer& peer);
    void raise_epochs(Loss loss, pid_t pid);
    bool pass_on(const Peer& peer);
    void lose(Peer& peer, FrameReader::State state, int error);
    // 0 or an errno.
    int send(Peer& peer, Outgoing* outgoing, size_t num_outgoing);
    int send_frame(Peer& peer, FrameKind kind, uint64_t done);
    bool is_sent(Peer& peer, int error);
    // Until the descriptor is ready for `events`, or the epoch is raised.
    bool wait_ready(const int* fds, size_t num_fds, short events);
    void give_up();

    std::shared_ptr<PeerMemory> memory_;
    int rank_;
    bool (*interrupted_)() = nullptr;
    std::vector<std::shared_ptr<SharedRegion>> levels_;
    std::shared_ptr<SharedRegion> whole_;
    std::vector<std::unique_ptr<Peer>> peers_;  // by rank; null for those that share memory
    int wake_;                                  // an eventfd that ends the thread
    std::atomic<bool> leaving_{false};
    std::thread thread_;
};

}  // namespace fastserve
