"""How the ranks of a group, on whatever hosts, tell each other something before they are connected."""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, Protocol, Self

from fastserve.distributed.rendezvous import Deadline, Place, number_of, receive_exactly
from fastserve.errors import GroupError

MAGIC = 0x66735F6469726563
HELLO = struct.Struct("=Qii64s")  # magic, rank, size, the run's name
LENGTH = struct.Struct("=I")
MAX_ENTRY = 64 * 1024
RETRY_S = 0.05  # until rank 0 listens


class Directory(Protocol):
    def share(self, subject: str, mine: bytes) -> list[bytes]:
        """What every rank brought for the subject, by rank; all ranks share the same subjects in the same order."""


class Store(Protocol):
    """What is used of torch's key-value stores."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...


class StoreDirectory:
    """Over torch's own store, which init_process_group has made already."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = size

    def share(self, subject: str, mine: bytes) -> list[bytes]:
        self._store.set(f"fastserve/{subject}/{self._rank}", mine.decode())
        return [self._store.get(f"fastserve/{subject}/{rank}") for rank in range(self._size)]


class TcpDirectory:
    """Over connections of all ranks to rank 0, which listens at FASTSERVE_PORT (MASTER_PORT + 1) of MASTER_ADDR."""

    def __init__(self, place: Place, address: tuple[str, int], deadline: Deadline) -> None:
        """Raises GroupError, OSError, TimeoutError."""
        self._place = place
        self._deadline = deadline
        self._channels: dict[int, socket.socket] = {}  # rank 0: to all others; the others: to rank 0
        try:
            if place.rank == 0:
                self._accept(address)
            else:
                self._channels[0] = self._connect(address)
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_environment(cls, place: Place, environment: Mapping[str, str], deadline: Deadline) -> Self:
        """Raises GroupError naming the variable that is missing or wrong; OSError, TimeoutError."""
        host = environment.get("MASTER_ADDR")
        if not host:
            raise GroupError("MASTER_ADDR is not set: the address at which all hosts reach rank 0's")
        port = number_of(environment, "FASTSERVE_PORT", number_of(environment, "MASTER_PORT") + 1)
        return cls(place, (host, port), deadline)

    def share(self, subject: str, mine: bytes) -> list[bytes]:
        if len(mine) > MAX_ENTRY:
            raise ValueError(f"an entry may have {MAX_ENTRY} bytes, got {len(mine)} for {subject}")
        if self._place.rank != 0:
            self._send(self._channels[0], mine)
            return [self._receive(self._channels[0]) for _ in range(self._place.size)]
        entries = [mine, *(self._receive(channel) for _, channel in sorted(self._channels.items()))]
        for channel in self._channels.values():
            for entry in entries:
                self._send(channel, entry)
        return entries

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    def _send(self, channel: socket.socket, entry: bytes) -> None:
        channel.settimeout(self._deadline.left())
        channel.sendall(LENGTH.pack(len(entry)) + entry)

    def _receive(self, channel: socket.socket) -> bytes:
        channel.settimeout(self._deadline.left())
        (length,) = LENGTH.unpack(receive_exactly(channel, LENGTH.size))
        if length > MAX_ENTRY:
            raise GroupError(f"a rank announced an entry of {length} bytes, at most {MAX_ENTRY} are allowed")
        return receive_exactly(channel, length)

    def _hello(self, rank: int) -> bytes:
        return HELLO.pack(MAGIC, rank, self._place.size, self._place.name.encode()[:64])

    def _accept(self, address: tuple[str, int]) -> None:
        family, resolved = resolve(address)
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(resolved)
            except OSError as error:
                raise GroupError(
                    f"rank 0 cannot listen at {address[0]}:{address[1]} ({error.strerror}): MASTER_ADDR must be its "
                    "host's, FASTSERVE_PORT a free port"
                ) from error
            listener.listen(self._place.size)
            while len(self._channels) < self._place.size - 1:
                listener.settimeout(self._deadline.left())
                channel, _ = listener.accept()
                rank = self._rank_of(channel)
                if rank is None or rank in self._channels:
                    channel.close()  # a stranger
                    continue
                self._channels[rank] = channel

    def _rank_of(self, channel: socket.socket) -> int | None:
        try:
            channel.settimeout(min(self._deadline.left(), 1.0))
            hello = receive_exactly(channel, HELLO.size)
        except (GroupError, OSError):
            return None
        _, rank, *_ = HELLO.unpack(hello)
        is_ours = 0 < rank < self._place.size and hmac.compare_digest(hello, self._hello(rank))
        return rank if is_ours else None

    def _connect(self, address: tuple[str, int]) -> socket.socket:
        while True:
            family, resolved = resolve(address)
            channel = socket.socket(family, socket.SOCK_STREAM)
            try:
                channel.settimeout(self._deadline.left())
                channel.connect(resolved)
                channel.sendall(self._hello(self._place.rank))
            except (ConnectionError, socket.gaierror):
                channel.close()
                time.sleep(min(RETRY_S, self._deadline.left()))
            except BaseException:
                channel.close()
                raise
            else:
                return channel


def resolve(address: tuple[str, int]) -> tuple[socket.AddressFamily, Any]:
    """(family, the address as that family has it): the first of getaddrinfo's answers. Raises GroupError."""
    try:
        family, _, _, _, resolved = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise GroupError(f"{address[0]} is no address that is known here: {error.strerror}") from error
    return family, resolved


def own_address(environment: Mapping[str, str] = os.environ) -> str:
    """Where other hosts reach this one: FASTSERVE_ADDRESS, or the address from which MASTER_ADDR is reached.

    Raises GroupError.
    """
    if own := environment.get("FASTSERVE_ADDRESS"):
        return own
    master = environment.get("MASTER_ADDR")
    if master:
        family, resolved = resolve((master, 1))
        with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.connect(resolved)  # sends nothing
            return str(probe.getsockname()[0])
    raise GroupError("set FASTSERVE_ADDRESS to the address at which the other hosts reach this one")
