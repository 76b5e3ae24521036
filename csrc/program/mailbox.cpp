#include "program/mailbox.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/threads.h"

namespace fastserve {

struct Mailbox::Header {
    struct alignas(128) Counter {
        std::atomic<uint64_t> value;
    };
    Counter head;
    Counter tail[kMaxReaders];
    alignas(128) std::atomic<uint32_t> events;  // futex word: raised by every write, read and close
    std::atomic<uint32_t> sleepers;
    std::atomic<uint32_t> closed;
};

namespace {

using Clock = std::chrono::steady_clock;

void sleep_until_event(std::atomic<uint32_t>& word, uint32_t seen, int timeout_ms) {
    timespec timeout{timeout_ms / 1000, (timeout_ms % 1000) * 1000000L};
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, seen, &timeout, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

size_t padded(size_t size) {
    return (size + 7) / 8 * 8;
}

}  // namespace

size_t Mailbox::bytes(size_t capacity) {
    return sizeof(Header) + capacity;
}

Mailbox::Mailbox(void* memory, size_t capacity, int num_readers, bool create)
    : header_(static_cast<Header*>(memory)),
      ring_(static_cast<uint8_t*>(memory) + sizeof(Header)),
      capacity_(capacity),
      num_readers_(num_readers) {
    if (capacity % 8 || capacity < 64)
        throw std::invalid_argument("a mailbox's capacity must be a multiple of 8");
    if (num_readers < 1 || num_readers > kMaxReaders)
        throw std::invalid_argument("num_readers must be in [1, " + std::to_string(kMaxReaders) + "]");
    if (create) new (header_) Header();
}

uint64_t Mailbox::slowest_tail() const {
    uint64_t tail = UINT64_MAX;
    for (int r = 0; r < num_readers_; ++r)
        tail = std::min(tail, header_->tail[r].value.load(std::memory_order_acquire));
    return tail;
}

bool Mailbox::write(const void* data, size_t size, int timeout_ms) {
    const size_t needed = 8 + padded(size);
    if (needed > max_message())
        throw std::length_error("a message of " + std::to_string(size) + " bytes does not fit a mailbox of " +
                                std::to_string(capacity_));
    const uint64_t head = header_->head.value.load(std::memory_order_relaxed);
    const size_t at = head % capacity_;
    // A message is never split: when it does not fit before the end, a length of all ones says "go on at the
    // start".
    const size_t skip = at + needed > capacity_ ? capacity_ - at : 0;
    const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
    while (head + skip + needed - slowest_tail() > capacity_) {
        if (header_->closed.load() || Clock::now() >= deadline) return false;
        const uint32_t seen = header_->events.load();
        header_->sleepers.fetch_add(1);
        if (head + skip + needed - slowest_tail() > capacity_) sleep_until_event(header_->events, seen, 10);
        header_->sleepers.fetch_sub(1);
    }
    if (header_->closed.load()) return false;
    if (skip) {
        const uint64_t marker = UINT64_MAX;
        std::memcpy(ring_ + at, &marker, 8);
    }
    uint8_t* to = ring_ + (head + skip) % capacity_;
    const uint64_t length = size;
    std::memcpy(to, &length, 8);
    if (size) std::memcpy(to + 8, data, size);
    header_->head.value.store(head + skip + needed, std::memory_order_release);
    header_->events.fetch_add(1);
    if (header_->sleepers.load() > 0) wake_all(header_->events);
    return true;
}

Mailbox::Read Mailbox::read(int reader, std::vector<uint8_t>& message, int spin_us, int timeout_ms) {
    std::atomic<uint64_t>& tail = header_->tail[reader].value;
    uint64_t at = tail.load(std::memory_order_relaxed);
    const auto start = Clock::now();
    const auto spin_end = start + std::chrono::microseconds(spin_us);
    const auto deadline = start + std::chrono::milliseconds(timeout_ms);
    const auto empty = [&] { return header_->head.value.load(std::memory_order_acquire) == at; };
    while (empty()) {
        if (header_->closed.load()) return Read::closed;
        const auto now = Clock::now();
        if (now >= deadline) return Read::timeout;
        if (now < spin_end) {
            for (int i = 0; i < 32 && empty(); ++i) spin_pause();
            continue;
        }
        const uint32_t seen = header_->events.load();
        header_->sleepers.fetch_add(1);
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - now).count() + 1;
        if (empty() && !header_->closed.load())
            sleep_until_event(header_->events, seen, static_cast<int>(left));
        header_->sleepers.fetch_sub(1);
    }
    uint64_t length;
    std::memcpy(&length, ring_ + at % capacity_, 8);
    if (length == UINT64_MAX) {
        at += capacity_ - at % capacity_;
        std::memcpy(&length, ring_ + at % capacity_, 8);
    }
    if (length > max_message())
        throw std::runtime_error("the mailbox is damaged: a message claims " + std::to_string(length) +
                                 " bytes");
    const uint8_t* from = ring_ + at % capacity_ + 8;
    message.assign(from, from + length);
    tail.store(at + 8 + padded(length), std::memory_order_release);
    header_->events.fetch_add(1);
    if (header_->sleepers.load() > 0) wake_all(header_->events);
    return Read::message;
}

void Mailbox::close() {
    header_->closed.store(1);
    header_->events.fetch_add(1);
    wake_all(header_->events);
}

}  // namespace fastserve
