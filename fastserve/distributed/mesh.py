"""TCP connections between ranks of different hosts, for the native collectives.

Every rank listens on its own address; the higher rank of a pair calls the lower. A caller shows the group's secret,
which the ranks got by their directory; who does not is turned away.
"""

from __future__ import annotations

import hmac
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastserve.distributed.directory import resolve
from fastserve.distributed.rendezvous import Deadline, receive_exactly
from fastserve.errors import GroupError

SECRET_BYTES = 16
HELLO = struct.Struct(f"={SECRET_BYTES}siii")  # the secret, rank, level, index
NUM_STREAMS = 2  # of a pair of ranks
NUM_CONNECTIONS = NUM_STREAMS + 2  # one more carries messages, one why a rank gave up


class PeerConnections(NamedTuple):
    """Descriptors of the connections to a rank."""

    rank: int  # in the level
    number: int  # in the whole group
    streams: list[int]
    mail: int
    obituary: int


@dataclass(frozen=True, slots=True)
class Level:
    """One set of connections: its number and the ranks that it reaches, by the name each has there."""

    number: int
    peers: dict[int, int]  # global rank -> rank in the level


class Mesh:
    """Listens from the start; connect() makes all connections of this rank."""

    def __init__(self, rank: int, address: str, secret: bytes, silence_s: float) -> None:
        """silence_s: how long a host may send nothing at all before it counts as cut off. Raises GroupError."""
        self._rank = rank
        self._secret = secret
        self._silence_s = silence_s
        family, resolved = resolve((address, 0))
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.bind(resolved)
            self._listener.listen(socket.SOMAXCONN)
        except OSError as error:
            self._listener.close()
            raise GroupError(
                f"rank {rank} cannot listen at {address} ({error.strerror}): FASTSERVE_ADDRESS must be this host's"
            ) from error

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def connect(
        self, levels: Sequence[Level], addresses: Sequence[tuple[str, int]], deadline: Deadline
    ) -> list[list[PeerConnections]]:
        """The connections of each level; the descriptors are the caller's. Raises GroupError, OSError, TimeoutError."""
        ends: dict[tuple[int, int, int], socket.socket] = {}  # (level, rank, index)
        wanted = {
            (level.number, rank, index)
            for level in levels
            for rank in level.peers
            for index in range(NUM_CONNECTIONS)
        }
        try:
            for number, rank, index in sorted(wanted):
                if rank < self._rank:
                    ends[number, rank, index] = self._call(addresses[rank], number, index, deadline)
            while len(ends) < len(wanted):
                key, channel = self._accept(deadline)
                if key is None or key not in wanted or key in ends:
                    channel.close()
                else:
                    ends[key] = channel
        except BaseException:
            _close(ends.values())
            raise
        return [
            [
                PeerConnections(local, rank, streams, mail, obituary)
                for rank, local in level.peers.items()
                for *streams, mail, obituary in [
                    [ends[level.number, rank, index].detach() for index in range(NUM_CONNECTIONS)]
                ]
            ]
            for level in levels
        ]

    def _call(self, address: tuple[str, int], level: int, index: int, deadline: Deadline) -> socket.socket:
        family, resolved = resolve(address)
        channel = socket.socket(family, socket.SOCK_STREAM)
        try:
            channel.settimeout(deadline.left())
            channel.connect(resolved)
            channel.sendall(HELLO.pack(self._secret, self._rank, level, index))
        except BaseException:
            channel.close()
            raise
        return self._prepared(channel)

    def _accept(self, deadline: Deadline) -> tuple[tuple[int, int, int] | None, socket.socket]:
        self._listener.settimeout(deadline.left())
        channel, _ = self._listener.accept()
        try:
            channel.settimeout(min(deadline.left(), 1.0))
            secret, rank, level, index = HELLO.unpack(receive_exactly(channel, HELLO.size))
        except (GroupError, OSError):
            return None, channel
        if not hmac.compare_digest(secret, self._secret):
            return None, channel
        return (level, rank, index), self._prepared(channel)

    def _prepared(self, channel: socket.socket) -> socket.socket:
        """The kernel ends a connection whose other end is silent: it probes when there is nothing to say."""
        channel.settimeout(None)
        tcp = socket.IPPROTO_TCP
        silence_ms = int(self._silence_s * 1000)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        channel.setsockopt(tcp, socket.TCP_KEEPIDLE, 1)
        channel.setsockopt(tcp, socket.TCP_KEEPINTVL, 1)
        channel.setsockopt(tcp, socket.TCP_KEEPCNT, max(1, round(self._silence_s) - 1))
        channel.setsockopt(tcp, socket.TCP_USER_TIMEOUT, silence_ms)
        return channel

    def close(self) -> None:
        self._listener.close()


def _close(channels: Iterable[socket.socket]) -> None:
    for channel in channels:
        channel.close()
