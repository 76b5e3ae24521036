"""What the engine and a rank say to each other beside the mailbox: msgspec messages on a unix socket pair.

The socket is also how each learns of the other's death: its end is closed by the kernel, whatever killed the process.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from fastserve.distributed.rank_program import RankSettings
from fastserve.models.llama import Shard

MAX_MESSAGE_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")


class StartRank(msgspec.Struct, frozen=True, tag="start"):
    """Engine to rank: what to load and run in this epoch. The region's descriptor comes with it."""

    epoch: int  # from 1
    path: str
    rank: int
    num_ranks: int
    shard: Shard
    settings: RankSettings
    cores: list[int]
    gpu: int | None = None  # the device, where it is not the cores


class RankIdle(msgspec.Struct, frozen=True, tag="idle"):
    """Rank to engine: it has started (0), or it is out of that epoch, which was raised; it waits for a StartRank."""

    epoch: int


class RankReady(msgspec.Struct, frozen=True, tag="ready"):
    packed_bytes: int


class RankFailed(msgspec.Struct, frozen=True, tag="failed"):
    """Rank to engine: why it cannot start or go on; `kind` is a class of fastserve.errors or ""."""

    message: str
    kind: str = ""


Report = RankIdle | RankReady | RankFailed


def send(channel: socket.socket, message: msgspec.Struct, descriptor: int | None = None) -> None:
    """The descriptor, if any, travels with the first byte."""
    body = msgspec.msgpack.encode(message)
    data = _LENGTH.pack(len(body)) + body
    sent = 0 if descriptor is None else socket.send_fds(channel, [data], [descriptor])
    channel.sendall(data[sent:])


def _receive_exactly(channel: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        part = channel.recv(num_bytes - len(received))
        if not part:
            raise EOFError("the other side is gone")
        received += part
    return bytes(received)


def _receive_body(channel: socket.socket, begun: bytes = b"") -> bytes:
    (length,) = _LENGTH.unpack(begun + _receive_exactly(channel, _LENGTH.size - len(begun)))
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a control message must be at most {MAX_MESSAGE_BYTES} bytes, got {length}")
    return _receive_exactly(channel, length)


def receive_start(channel: socket.socket) -> tuple[StartRank, int]:
    """(what to run, the region's descriptor, which is the caller's to close).

    Raises EOFError when the engine is gone, ValueError (of msgspec too) for what is not a StartRank.
    """
    begun, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not begun:
        raise EOFError("the other side is gone")
    start = msgspec.msgpack.decode(_receive_body(channel, begun), type=StartRank)
    if len(descriptors) != 1:
        raise ValueError(f"a StartRank comes with one descriptor, got {len(descriptors)}")
    return start, descriptors[0]


def receive_report(channel: socket.socket) -> Report:
    report: Report = msgspec.msgpack.decode(_receive_body(channel), type=Report)
    return report
