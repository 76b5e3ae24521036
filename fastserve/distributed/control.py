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
    """Engine to rank: what to load and run."""

    path: str
    rank: int
    num_ranks: int
    shard: Shard
    settings: RankSettings
    cores: list[int]
    region_fd: int


class RankReady(msgspec.Struct, frozen=True, tag="ready"):
    packed_bytes: int


class RankFailed(msgspec.Struct, frozen=True, tag="failed"):
    """Rank to engine: why it cannot start or go on; `kind` is a class of fastserve.errors or ""."""

    message: str
    kind: str = ""


Report = RankReady | RankFailed


def send(channel: socket.socket, message: msgspec.Struct) -> None:
    body = msgspec.msgpack.encode(message)
    channel.sendall(_LENGTH.pack(len(body)) + body)


def _receive_exactly(channel: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        part = channel.recv(num_bytes - len(received))
        if not part:
            raise EOFError("the other side is gone")
        received += part
    return bytes(received)


def _receive_body(channel: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_receive_exactly(channel, _LENGTH.size))
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a control message must be at most {MAX_MESSAGE_BYTES} bytes, got {length}")
    return _receive_exactly(channel, length)


def receive_start(channel: socket.socket) -> StartRank:
    """Raises EOFError when the engine is gone, ValueError (of msgspec too) for what is not a StartRank."""
    return msgspec.msgpack.decode(_receive_body(channel), type=StartRank)


def receive_report(channel: socket.socket) -> Report:
    report: Report = msgspec.msgpack.decode(_receive_body(channel), type=Report)
    return report
