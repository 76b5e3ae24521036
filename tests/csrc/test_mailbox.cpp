// Every reader sees every message, whole and in order, also where the ring wraps; closing ends everything.
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "program/mailbox.h"

using fastserve::Mailbox;

namespace {

constexpr size_t kCapacity = 512;
constexpr int kReaders = 3;
constexpr int kMessages = 20000;
constexpr int kTimeoutMs = 20000;

struct Memory {
    Memory() : bytes(new(std::align_val_t(128)) uint8_t[Mailbox::bytes(kCapacity)]) {}
    ~Memory() { operator delete[](bytes, std::align_val_t(128)); }
    uint8_t* bytes;
};

std::vector<uint8_t> message_of(int i) {
    std::vector<uint8_t> message(static_cast<size_t>(i * 37 % 200));
    for (size_t j = 0; j < message.size(); ++j) message[j] = static_cast<uint8_t>(i + j);
    return message;
}

void every_reader_sees_every_message() {
    Memory memory;
    Mailbox mailbox(memory.bytes, kCapacity, kReaders, true);
    std::vector<std::thread> readers;
    std::atomic<int> wrong{0};
    for (int r = 0; r < kReaders; ++r)
        readers.emplace_back([&, r] {
            Mailbox mine(memory.bytes, kCapacity, kReaders, false);
            std::vector<uint8_t> message;
            for (int i = 0; i < kMessages; ++i)
                wrong += mine.read(r, message, 5, kTimeoutMs) != Mailbox::Read::message ||
                         message != message_of(i);
            wrong += mine.read(r, message, 5, kTimeoutMs) != Mailbox::Read::closed;
        });
    for (int i = 0; i < kMessages; ++i) {
        const auto message = message_of(i);
        CHECK(mailbox.write(message.data(), message.size(), kTimeoutMs));
    }
    mailbox.close();
    for (auto& reader : readers) reader.join();
    CHECK(wrong == 0);
}

void a_full_mailbox_waits_and_a_closed_one_refuses() {
    Memory memory;
    Mailbox mailbox(memory.bytes, kCapacity, 1, true);
    const std::vector<uint8_t> message(200);
    CHECK(mailbox.write(message.data(), message.size(), 1));
    CHECK(mailbox.write(message.data(), message.size(), 1));
    CHECK(!mailbox.write(message.data(), message.size(), 1));
    CHECK_THROWS(mailbox.write(message.data(), 1000, 1), std::length_error);
    mailbox.close();
    std::vector<uint8_t> read;
    CHECK(mailbox.read(0, read, 0, 1) == Mailbox::Read::message);  // written before the close
    CHECK(!mailbox.write(message.data(), message.size(), 1));
}

void a_damaged_length_is_refused() {
    Memory memory;
    Mailbox mailbox(memory.bytes, kCapacity, 1, true);
    const uint64_t value = 1;
    CHECK(mailbox.write(&value, 8, 1));
    const uint64_t damaged = 1 << 30;
    std::memcpy(memory.bytes + Mailbox::bytes(kCapacity) - kCapacity, &damaged, 8);
    std::vector<uint8_t> read;
    CHECK_THROWS(mailbox.read(0, read, 0, 1), std::runtime_error);
}

}  // namespace

int main() {
    every_reader_sees_every_message();
    a_full_mailbox_waits_and_a_closed_one_refuses();
    a_damaged_length_is_refused();
    return failures() != 0;
}
