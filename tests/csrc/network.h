// Connections between the ranks of different "hosts" of a test: TCP over the loopback.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <vector>

#include "check.h"
#include "ring/socket_links.h"

class Network {
  public:
    static constexpr int kStreams = 3;
    static constexpr int kConnections = kStreams + 2;

    // Ranks of equal host_of share memory and are not connected.
    explicit Network(std::vector<int> host_of) : host_of_(std::move(host_of)) {
        for (int rank = 0; rank < size(); ++rank) {
            listeners_.push_back(socket(AF_INET, SOCK_STREAM, 0));
            addresses_.emplace_back();
            addresses_.back().sin_family = AF_INET;
            addresses_.back().sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            socklen_t length = sizeof(sockaddr_in);
            CHECK(bind(listeners_.back(), name(rank), length) == 0 && listen(listeners_.back(), 100) == 0);
            CHECK(getsockname(listeners_.back(), name(rank), &length) == 0);
        }
    }
    ~Network() {
        for (const int listener : listeners_) close(listener);
    }
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;

    int size() const { return static_cast<int>(host_of_.size()); }
    int host_of(int rank) const { return host_of_[static_cast<size_t>(rank)]; }

    // Called once by every rank: lower ranks are called, higher ones accepted.
    std::vector<fastserve::SocketLinks::Connections> connect(int rank) {
        std::map<int, std::vector<int>> ends;
        size_t num_left = 0;
        for (int peer = 0; peer < size(); ++peer) {
            if (host_of(peer) == host_of(rank)) continue;
            ends[peer].resize(kConnections);
            num_left += peer > rank ? kConnections : 0;
            for (int i = 0; peer < rank && i < kConnections; ++i) {
                const int fd = socket(AF_INET, SOCK_STREAM, 0), hello[2] = {rank, i};
                CHECK(::connect(fd, name(peer), sizeof(sockaddr_in)) == 0);
                CHECK(write(fd, hello, sizeof hello) == sizeof hello);
                ends[peer][static_cast<size_t>(i)] = fd;
            }
        }
        for (; num_left > 0; --num_left) {
            const int fd = accept(listeners_[static_cast<size_t>(rank)], nullptr, nullptr);
            int hello[2] = {};
            CHECK(recv(fd, hello, sizeof hello, MSG_WAITALL) == sizeof hello);
            ends[hello[0]][static_cast<size_t>(hello[1])] = fd;
        }
        std::vector<fastserve::SocketLinks::Connections> peers;
        for (const auto& [peer, fds] : ends)
            peers.push_back({peer, peer, {fds.begin(), fds.end() - 2}, fds[kStreams], fds.back()});
        return peers;
    }

  private:
    sockaddr* name(int rank) { return reinterpret_cast<sockaddr*>(&addresses_[static_cast<size_t>(rank)]); }

    std::vector<int> host_of_;
    std::vector<int> listeners_;
    std::vector<sockaddr_in> addresses_;
};
