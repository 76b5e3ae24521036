#include "ring/socket_links.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

#include "ring/wait.h"

namespace fastserve {

namespace {

constexpr int64_t kMinPart = 32 * 1024;  // of a payload that is cut over streams
constexpr int kLookMs = 50;              // how late a raised epoch may be noticed by who waits for a socket
constexpr int kObituaryMs = 1000;        // how long after a stream the obituary may end
constexpr auto kLingerLimit = std::chrono::seconds(5);

// Of a rank on another host, where there is no process id to tell.
pid_t pid_of(int number) {
    return -(number + 1);
}

bool is_silence(int error) {
    return error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH || error == ENETDOWN;
}

void prepare(int fd) {
    const int one = 1;  // flags may not wait for an acknowledgement; no matter where it is no TCP
    static_cast<void>(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        throw std::system_error(errno, std::generic_category(), "a connection to another host");
}

}  // namespace

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

SocketLinks::SocketLinks(std::shared_ptr<PeerMemory> memory, int rank, const std::vector<Connections>& peers,
                         std::vector<std::shared_ptr<SharedRegion>> levels,
                         std::shared_ptr<SharedRegion> whole)
    : memory_(std::move(memory)),
      rank_(rank),
      levels_(std::move(levels)),
      whole_(std::move(whole)),
      peers_(static_cast<size_t>(memory_->size())),
      wake_(-1) {
    for (const Connections& connections : peers) {
        const bool is_peer =
            connections.rank >= 0 && connections.rank < memory_->size() && connections.rank != rank_;
        if (!is_peer || reaches(connections.rank) || connections.streams.empty() ||
            connections.streams.size() > kMaxStreams)
            throw std::invalid_argument("connections must be one to " + std::to_string(kMaxStreams) +
                                        " streams for another rank, once; got " +
                                        std::to_string(connections.streams.size()) + " for rank " +
                                        std::to_string(connections.rank));
        auto peer = std::make_unique<Peer>();
        peer->rank = connections.rank;
        peer->pid = pid_of(connections.number);
        for (const int fd : connections.streams) peer->streams.emplace_back(fd);
        peer->open.assign(connections.streams.size(), true);
        peer->mail = connections.mail;
        peer->obituary = connections.obituary;
        for (const int fd : peer->descriptors()) prepare(fd);
        for (RankSlot* slot : {&peer->slot, &memory_->region().slot(connections.rank)})
            slot->pid.store(peer->pid, std::memory_order_release);
        peers_[static_cast<size_t>(connections.rank)] = std::move(peer);
    }
    wake_ = eventfd(0, EFD_CLOEXEC);
    if (wake_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    thread_ = std::thread([this] { receive(); });
}

SocketLinks::~SocketLinks() {
    leave();
}

// Whether a peer is lost is for the receiving thread to say, which reads what came before the end: perhaps a
// goodbye. So sending to nobody is no loss, as it is none to write into the memory of who has left.
bool SocketLinks::is_sent(Peer& peer, int error) {
    if (is_silence(error)) lose(peer, FrameReader::State::broken, error);
    return !memory_->region().failed();
}

RankSlot& SocketLinks::slot(int rank) const {
    return peers_[static_cast<size_t>(rank)]->slot;
}

bool SocketLinks::push(Area area, int to, uint64_t number, uint64_t done, const void* data, int64_t bytes) {
    Peer& peer = *peers_[static_cast<size_t>(to)];
    const int64_t num_parts =
        std::clamp<int64_t>(bytes / kMinPart, 1, static_cast<int64_t>(peer.streams.size()));
    Outgoing outgoing[kMaxStreams];
    for (int64_t i = 0; i < num_parts; ++i)
        outgoing[i].set(i == 0 ? FrameKind::last : FrameKind::part, area, number, done, data,
                        i * bytes / num_parts, (i + 1) * bytes / num_parts, bytes);
    return is_sent(peer, send(peer, outgoing, static_cast<size_t>(num_parts)));
}

bool SocketLinks::tell_done(int to, uint64_t done) {
    Peer& peer = *peers_[static_cast<size_t>(to)];
    return is_sent(peer, send_frame(peer, FrameKind::done, done));
}

int SocketLinks::send_frame(Peer& peer, FrameKind kind, uint64_t done) {
    Outgoing outgoing;
    outgoing.set(kind, Area::scatter, 0, done, nullptr, 0, 0, 0);
    return send(peer, &outgoing, 1);
}

int SocketLinks::send(Peer& peer, Outgoing* outgoing, size_t num_outgoing) {
    const std::lock_guard lock(peer.sending);
    for (;;) {
        int blocked[kMaxStreams];
        size_t num_blocked = 0;
        for (size_t i = 0; i < num_outgoing; ++i) {
            while (!outgoing[i].is_sent()) {
                msghdr message{};
                message.msg_iov = outgoing[i].left;
                message.msg_iovlen = 2;
                const ssize_t sent = sendmsg(peer.streams[i].fd(), &message, MSG_NOSIGNAL);
                if (sent >= 0) {
                    outgoing[i].advance(static_cast<size_t>(sent));
                } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
                    blocked[num_blocked++] = peer.streams[i].fd();
                    break;
                } else if (errno != EINTR) {
                    return errno;
                }
            }
        }
        if (num_blocked == 0) return 0;
        if (!wait_ready(blocked, num_blocked, POLLOUT)) return ECANCELED;
    }
}

bool SocketLinks::wait_ready(const int* fds, size_t num_fds, short events) {
    pollfd polled[kMaxStreams];
    for (size_t i = 0; i < num_fds; ++i) polled[i] = {fds[i], events, 0};
    for (;;) {
        if (memory_->region().failed()) return false;
        if (poll(polled, num_fds, kLookMs) > 0) return true;
        if (interrupted_ && interrupted_()) raise_epochs(Loss::interrupted, getpid());
    }
}

bool SocketLinks::send_mail(int to, const void* data, size_t bytes) {
    Peer& peer = *peers_[static_cast<size_t>(to)];
    const uint8_t* from = static_cast<const uint8_t*>(data);
    while (bytes > 0) {
        const ssize_t sent = ::send(peer.mail, from, bytes, MSG_NOSIGNAL);
        if (sent >= 0) {
            from += sent;
            bytes -= static_cast<size_t>(sent);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_ready(&peer.mail, 1, POLLOUT)) return false;
        } else if (errno != EINTR) {
            return is_sent(peer, errno);
        }
    }
    return true;
}

bool SocketLinks::receive_mail(int from, void* data, size_t bytes) {
    Peer& peer = *peers_[static_cast<size_t>(from)];
    uint8_t* to = static_cast<uint8_t*>(data);
    while (bytes > 0) {
        const ssize_t got = recv(peer.mail, to, bytes, 0);
        if (got > 0) {
            to += got;
            bytes -= static_cast<size_t>(got);
        } else if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!wait_ready(&peer.mail, 1, POLLIN)) return false;
        } else if (got == 0 || errno != EINTR) {
            return ended_early(peer);
        }
    }
    return true;
}

// A message's connection has ended: with the peer's streams, whose end says why, unless it has left.
bool SocketLinks::ended_early(const Peer& peer) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::milliseconds(2 * kObituaryMs);
    while (!memory_->region().failed() && !has_left(peer) && std::chrono::steady_clock::now() < limit)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    raise_epochs(Loss::left, peer.pid);
    return false;
}

bool SocketLinks::has_mail(int from) const {
    uint8_t byte;
    return recv(peers_[static_cast<size_t>(from)]->mail, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

// The thread that fills the inbox.

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
        if (polled[0].revents) return;
        if (memory_->region().failed()) return give_up();
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

void SocketLinks::leave() {
    if (leaving_.exchange(true)) return;
    // What lies unsent when a connection is closed can be lost, so wait until the peers' kernels have it.
    const auto limit = std::chrono::steady_clock::now() + kLingerLimit;
    for (const auto& peer : peers_)
        if (peer && !memory_->region().failed()) send_frame(*peer, FrameKind::left, 0);
    for (const auto& peer : peers_) {
        if (!peer) continue;
        for (const int fd : peer->descriptors()) {
            int unsent = 0;
            while (!memory_->region().failed() && !has_left(*peer) && ioctl(fd, SIOCOUTQ, &unsent) == 0 &&
                   unsent > 0 && std::chrono::steady_clock::now() < limit)
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }
    const uint64_t one = 1;
    while (write(wake_, &one, sizeof one) < 0 && errno == EINTR) {
    }
    thread_.join();
    for (const auto& peer : peers_)
        if (peer)
            for (const int fd : peer->descriptors()) close(fd);
    close(wake_);
}

}  // namespace fastserve
