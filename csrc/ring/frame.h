// What travels on a connection between ranks of different hosts: a header of fixed layout, then its payload.
//
// Hosts are little-endian, as everything that we run on. A frame fills a part of a slot of the receiver's
// inbox (peer_memory.h) or says something about the sender.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastserve {

enum class FrameKind : uint8_t {
    part,  // fills bytes [offset, offset + bytes) of a slot
    last,  // the same; the slot then holds `total` bytes, once all parts are there, and its flag is raised
    done,  // says nothing but `done`
    left,  // the sender leaves in good order and sends no more
    lost,  // the sender's group is lost: `total` is the Loss, `offset` the rank that was the reason
};

constexpr uint32_t kNobody = UINT32_MAX;  // where there is no rank to name

constexpr uint16_t kFrameMagic = 0x5346;

struct Frame {
    uint16_t magic;
    FrameKind kind;
    uint8_t area;
    uint32_t bytes;  // of the payload that follows
    uint64_t number;
    uint64_t done;  // the last collective that the sender has finished
    uint32_t offset, total;
};
static_assert(sizeof(Frame) == 32);

}  // namespace fastserve
