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

#include "ring/socket_peer.h"

namespace fastserve {

namespace {

constexpr int64_t kMinPart = 32 * 1024;  // of a payload that is cut over streams
constexpr auto kLingerLimit = std::chrono::seconds(5);

// Of a rank on another host, where there is no process id to tell.
pid_t pid_of(int number) {
    return -(number + 1);
}

void prepare(int fd) {
    const int one = 1;  // flags may not wait for an acknowledgement; no matter where it is no TCP
    static_cast<void>(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        throw std::system_error(errno, std::generic_category(), "a connection to another host");
}

}  // namespace

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
