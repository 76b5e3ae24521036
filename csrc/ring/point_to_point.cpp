#include "ring/point_to_point.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "ring/wait.h"

namespace fastserve {

namespace {

constexpr uint64_t kRing = PeerMemory::kMailBytes;
constexpr uint64_t kPiece = kRing / 4;  // published at a time, so that both sides copy at once

void check_length(int from, int64_t tag, int64_t expected, int64_t got) {
    if (expected == got) return;
    throw std::length_error("a receive of " + std::to_string(expected) + " bytes got a message of " +
                            std::to_string(got) + " from rank " + std::to_string(from) + " (tag " +
                            std::to_string(tag) + ")");
}

}  // namespace

PointToPoint::PointToPoint(std::shared_ptr<PeerMemory> memory, int rank, std::shared_ptr<SocketLinks> links)
    : memory_(std::move(memory)),
      links_(std::move(links)),
      rank_(rank),
      sent_(static_cast<size_t>(memory_->size())),
      received_(static_cast<size_t>(memory_->size())),
      kept_(static_cast<size_t>(memory_->size())) {}

bool PointToPoint::wait(int peer, Flag& flag, uint64_t value) {
    SharedRegion& region = memory_->region();
    // A message may come at any time: whoever waits for it gives way to those that work.
    const Waiting waiting{region, region.slot(rank_), true, nullptr};
    return wait_for_flag(waiting, region.slot(peer), flag, value);
}

bool PointToPoint::write(int to, const void* data, int64_t bytes) {
    if (is_remote(to)) return links_->send_mail(to, data, static_cast<size_t>(bytes));
    const uint8_t* from = static_cast<const uint8_t*>(data);
    uint8_t* ring = memory_->mail(to, rank_);
    Flag& tail = memory_->tail(to, rank_);
    uint64_t& sent = sent_[static_cast<size_t>(to)];
    for (uint64_t left = static_cast<uint64_t>(bytes); left > 0;) {
        uint64_t piece = std::min({left, kPiece, kRing - sent % kRing});
        if (sent + piece > kRing && !wait(to, tail, sent + piece - kRing)) return false;
        std::memcpy(ring + sent % kRing, from, piece);
        from += piece;
        left -= piece;
        sent += piece;
        publish_flag(memory_->region().slot(rank_), memory_->head(to, rank_), sent);
    }
    return true;
}

bool PointToPoint::read(int from, void* data, int64_t bytes) {
    if (is_remote(from)) return links_->receive_mail(from, data, static_cast<size_t>(bytes));
    uint8_t* to = static_cast<uint8_t*>(data);
    const uint8_t* ring = memory_->mail(rank_, from);
    Flag& head = memory_->head(rank_, from);
    uint64_t& received = received_[static_cast<size_t>(from)];
    for (uint64_t left = static_cast<uint64_t>(bytes); left > 0;) {
        if (!wait(from, head, received + 1)) return false;
        const uint64_t available = head.value.load(std::memory_order_acquire) - received;
        const uint64_t piece = std::min({left, available, kRing - received % kRing});
        std::memcpy(to, ring + received % kRing, piece);
        to += piece;
        left -= piece;
        received += piece;
        publish_flag(memory_->region().slot(rank_), memory_->tail(rank_, from), received);
    }
    return true;
}

bool PointToPoint::send(int to, int64_t tag, const void* data, int64_t bytes) {
    const Header header{tag, bytes};
    return write(to, &header, sizeof header) && write(to, data, bytes);
}

bool PointToPoint::receive(int from, int64_t tag, void* data, int64_t bytes) {
    std::deque<Kept>& kept = kept_[static_cast<size_t>(from)];
    const auto found =
        std::find_if(kept.begin(), kept.end(), [tag](const Kept& message) { return message.tag == tag; });
    if (found != kept.end()) {
        const std::vector<uint8_t> message = std::move(found->data);
        kept.erase(found);
        check_length(from, tag, bytes, static_cast<int64_t>(message.size()));
        if (bytes > 0) std::memcpy(data, message.data(), message.size());
        return true;
    }
    for (;;) {
        Header header;
        if (!read(from, &header, sizeof header)) return false;
        if (header.bytes < 0) check_length(from, tag, bytes, header.bytes);
        if (header.tag == tag && header.bytes == bytes) return read(from, data, bytes);
        if (!keep(from, header)) return false;
        if (header.tag != tag) continue;
        kept.pop_back();
        check_length(from, tag, bytes, header.bytes);
    }
}

bool PointToPoint::keep(int from, const Header& header) {
    Kept message{header.tag, std::vector<uint8_t>(static_cast<size_t>(header.bytes))};
    if (!read(from, message.data.data(), header.bytes)) return false;
    kept_[static_cast<size_t>(from)].push_back(std::move(message));
    return true;
}

bool PointToPoint::takes_in(int from, int64_t tag) {
    Header header;
    while (is_coming(from)) {
        if (!read(from, &header, sizeof header)) return false;
        if (header.bytes < 0) check_length(from, tag, 0, header.bytes);
        if (!keep(from, header)) return false;
    }
    const std::deque<Kept>& kept = kept_[static_cast<size_t>(from)];
    return std::any_of(kept.begin(), kept.end(), [tag](const Kept& message) { return message.tag == tag; });
}

bool PointToPoint::has_mail(int from) const {
    return !kept_[static_cast<size_t>(from)].empty() || is_coming(from);
}

bool PointToPoint::is_coming(int from) const {
    if (is_remote(from)) return links_->has_mail(from);
    return memory_->head(rank_, from).value.load(std::memory_order_acquire) >
           received_[static_cast<size_t>(from)];
}

}  // namespace fastserve
