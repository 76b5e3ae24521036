// The thread of a rank's links: it fills the inbox, and says when and why a peer is lost.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "ring/socket_links.h"
#include "ring/socket_peer.h"
#include "ring/wait.h"

namespace fastserve {

void SocketLinks::receive() {
    std::vector<pollfd> polled;
    std::vector<std::pair<Peer*, size_t>> streams;
    for (;;) {
        polled.assign(1, {wake_, POLLIN, 0});
        streams.clear();
        for (const auto& peer : peers_) {
            for (size_t i = 0; peer && i < peer->streams.size(); ++i) {
                if (!peer->open[i] || (i == 0 && peer->last)) continue;
                polled.push_back({peer->streams[i].fd(), POLLIN, 0});
                streams.emplace_back(peer.get(), i);
            }
        }
        const int num_ready = poll(polled.data(), polled.size(), kLookMs);
        // Also when this rank leaves because of it, perhaps before this thread has seen it.
        if (memory_->region().failed()) return give_up();
        if (polled[0].revents) return;
        for (size_t i = 0; num_ready > 0 && i < streams.size(); ++i)
            if (polled[i + 1].revents) read_stream(*streams[i].first, streams[i].second);
    }
}

void SocketLinks::read_stream(Peer& peer, size_t stream) {
    FrameReader& reader = peer.streams[stream];
    const auto place = [&](const Frame& frame) -> uint8_t* {
        const bool is_part = frame.kind == FrameKind::part || frame.kind == FrameKind::last;
        const bool fits = is_part ? frame.area <= static_cast<uint8_t>(Area::gather) &&
                                        frame.total <= memory_->slot_bytes() && frame.offset <= frame.total &&
                                        frame.bytes <= frame.total - frame.offset
                                  : frame.kind <= FrameKind::left && frame.bytes == 0;
        if (!fits) return nullptr;
        if (!is_part) return memory_->slot(rank_, Area::scatter, 0, peer.rank);
        return memory_->slot(rank_, static_cast<Area>(frame.area), static_cast<int>(frame.number % 2),
                             peer.rank) +
               frame.offset;
    };
    const auto state = reader.read(place, [&](const Frame& frame) {
        arrived(peer, frame);
        if (stream == 0 && peer.last) reader.pause();
    });
    if (stream > 0 && peer.last && finish_slot(peer, *peer.last)) {
        peer.last.reset();
        if (peer.open[0]) read_stream(peer, 0);  // its buffer may hold more, of which poll does not know
    }
    if (state == FrameReader::State::open) return;
    peer.open[stream] = false;
    // The goodbye comes on stream 0, maybe after the others have ended.
    const bool in_good_order = state == FrameReader::State::ended && stream > 0 && !peer.last;
    if (!in_good_order) lose(peer, state, reader.error());
}

void SocketLinks::arrived(Peer& peer, const Frame& frame) {
    Flag& done = memory_->done(peer.rank);
    // Parts come in any order, the rest in that of stream 0.
    if (frame.kind != FrameKind::part && frame.done > done.value.load(std::memory_order_relaxed))
        publish_flag(peer.slot, done, frame.done);
    switch (frame.kind) {
        case FrameKind::part:
        case FrameKind::last:
            peer.slot_bytes[frame.area][frame.number % 2] += frame.bytes;
            if (frame.kind == FrameKind::part || finish_slot(peer, frame)) return;
            peer.last = frame;
            if (std::find(peer.open.begin(), peer.open.end(), false) != peer.open.end())
                lose(peer, FrameReader::State::ended, 0);  // the parts that are missing will not come
            return;
        case FrameKind::done:
            return;
        case FrameKind::left:
            return peer.slot.state.store(static_cast<int32_t>(RankState::left), std::memory_order_release);
        case FrameKind::lost:
            return;  // not on a stream: read_stream() refuses it
    }
}

// True, with the flag raised, once all of the slot's parts are there.
bool SocketLinks::finish_slot(Peer& peer, const Frame& frame) {
    uint32_t& bytes = peer.slot_bytes[frame.area][frame.number % 2];
    if (bytes < frame.total) return false;
    bytes -= frame.total;  // parts of what comes next may be there
    publish_flag(peer.slot, memory_->flag(rank_, static_cast<Area>(frame.area), peer.rank), frame.number);
    return true;
}

bool SocketLinks::has_left(const Peer& peer) const {
    return peer.slot.state.load(std::memory_order_acquire) == static_cast<int32_t>(RankState::left);
}

void SocketLinks::raise_epochs(Loss loss, pid_t pid) {
    if (whole_) whole_->raise_epoch(loss, pid);
    memory_->region().raise_epoch(loss, pid);
}

void SocketLinks::lose(Peer& peer, FrameReader::State state, int error) {
    if (state == FrameReader::State::garbled) return raise_epochs(Loss::garbled, peer.pid);
    if (has_left(peer)) return;
    if (is_silence(error)) return raise_epochs(Loss::unreachable, peer.pid);
    if (!pass_on(peer)) raise_epochs(Loss::died, peer.pid);
}

// Whether the peer's obituary says why it closed its streams; the epochs are then raised for that reason. A
// peer that died has none, and its kernel ends this connection with the others.
bool SocketLinks::pass_on(const Peer& peer) {
    Frame frame{};
    size_t num_read = 0;
    const auto limit = std::chrono::steady_clock::now() + std::chrono::milliseconds(kObituaryMs);
    while (num_read < sizeof frame) {
        const ssize_t got =
            recv(peer.obituary, reinterpret_cast<uint8_t*>(&frame) + num_read, sizeof frame - num_read, 0);
        if (got > 0) {
            num_read += static_cast<size_t>(got);
        } else if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            pollfd polled{peer.obituary, POLLIN, 0};
            if (std::chrono::steady_clock::now() > limit) return false;
            poll(&polled, 1, kLookMs);
        } else if (got == 0 || errno != EINTR) {
            return false;
        }
    }
    const SharedRegion& whole = whole_ ? *whole_ : memory_->region();
    const bool names_rank = frame.offset < static_cast<uint32_t>(whole.num_ranks());
    if (frame.magic != kFrameMagic || frame.kind != FrameKind::lost || frame.total > kLastLoss ||
        !(names_rank || frame.offset == kNobody)) {
        raise_epochs(Loss::garbled, peer.pid);
        return true;
    }
    const pid_t pid = names_rank ? whole.slot(static_cast<int>(frame.offset)).pid.load() : 0;
    raise_epochs(static_cast<Loss>(frame.total), pid);
    return true;
}

// The other hosts learn why.
void SocketLinks::give_up() {
    const SharedRegion& region = memory_->region();
    raise_epochs(region.loss(), region.lost_pid());
    for (const auto& level : levels_) level->raise_epoch(region.loss(), region.lost_pid());
    const int lost = whole_ ? whole_->lost_rank() : region.lost_rank();
    Outgoing obituary;
    obituary.set(FrameKind::lost, Area::scatter, 0, 0, nullptr, 0, 0, static_cast<int64_t>(region.loss()));
    obituary.frame.offset = lost < 0 ? kNobody : static_cast<uint32_t>(lost);
    for (const auto& peer : peers_) {
        if (!peer) continue;
        static_cast<void>(::send(peer->obituary, &obituary.frame, sizeof(Frame), MSG_NOSIGNAL));
        for (const int fd : peer->descriptors()) shutdown(fd, SHUT_RDWR);
    }
}

}  // namespace fastserve
