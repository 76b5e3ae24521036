// A queue of messages in shared memory: one writer, one or more readers that each see every message.
//
// Bytes move through a ring; a message is a 64-bit length and its payload, padded to 8 bytes. The writer owns
// `head`, reader r owns `tail[r]`; both only grow, and the writer waits for the slowest reader before it
// wraps. No pickle, no pointers: what is read is checked by who reads it. Sleeping readers wait on a futex
// that the writer wakes only if somebody sleeps, so an idle engine uses no CPU and a busy one makes no system
// call.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastserve {

class Mailbox {
  public:
    static constexpr int kMaxReaders = 64;

    // What a mailbox of that capacity (bytes, a multiple of 8) takes.
    static size_t bytes(size_t capacity);

    // `create` initialises the memory, otherwise it must have been initialised with the same arguments.
    Mailbox(void* memory, size_t capacity, int num_readers, bool create);

    size_t max_message() const { return capacity_ / 2; }

    // Waits for room. Returns false if `closed` or after timeout_ms. Throws std::length_error if it can never
    // fit.
    bool write(const void* data, size_t size, int timeout_ms);

    enum class Read { message, timeout, closed };
    // Spins for spin_us, then sleeps. A closed mailbox still yields what was written before.
    Read read(int reader, std::vector<uint8_t>& message, int spin_us, int timeout_ms);

    // Wakes everybody; writes fail and reads end from now on.
    void close();

  private:
    struct Header;
    Header* header_;
    uint8_t* ring_;
    size_t capacity_;
    int num_readers_;

    uint64_t slowest_tail() const;
};

}  // namespace fastserve
