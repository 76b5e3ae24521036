"""How the processes of one host find each other and share memory.

Rank 0 listens on an abstract unix socket: no file, nothing to leave behind. Its name follows from what
torchrun gives every process of a run. Either side refuses a peer of another user. The layout of messages is
fixed.

    rank r -> 0   HELLO      magic, protocol, rank, number of ranks
    0 -> rank r   the regions' descriptors (SCM_RIGHTS), once every rank has said hello
    rank r -> 0   READY      attached
    0 -> rank r   READY      everybody has attached
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from fastserve.errors import GroupError

MAGIC = 0x66735F67726F7570
PROTOCOL = 1
HELLO = struct.Struct("=QIii")  # magic, protocol, rank, size
CREDENTIALS = struct.Struct("=iii")  # SO_PEERCRED: pid, uid, gid
READY = b"R"
MAX_REGIONS = 2
RETRY_S = 0.01  # until rank 0 listens


@dataclass(frozen=True, slots=True)
class Place:
    """What torchrun tells a process about itself and its run."""

    rank: int
    size: int
    name: str  # of the run: the same in all its processes, in no other's

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Raises GroupError naming the variable that is missing or wrong."""
        rank, size = (number_of(environment, name) for name in ("RANK", "WORLD_SIZE"))
        if not 0 <= rank < size:
            raise GroupError(f"RANK must be in [0, WORLD_SIZE), got {rank} of {size}")
        port = number_of(environment, "MASTER_PORT")
        run = environment.get("TORCHELASTIC_RUN_ID", "none")
        restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(rank, size, f"fastserve-{os.geteuid()}-{port}-{restart}-{run}"[:100])


def spans_hosts(environment: Mapping[str, str]) -> bool:
    """Whether the run has more processes than this host. Raises GroupError for what is no number."""
    size = number_of(environment, "WORLD_SIZE")
    return number_of(environment, "LOCAL_WORLD_SIZE", size) != size


@dataclass(frozen=True, slots=True)
class Peer:
    rank: int
    pid: int
    channel: socket.socket


def number_of(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A variable's value. Raises GroupError if it is missing, without a default, or no number."""
    text = environment.get(name)
    if text is None:
        if default is not None:
            return default
        raise GroupError(f"{name} is not set: start this script with `torchrun --nproc-per-node N script.py`")
    try:
        return int(text)
    except ValueError:
        raise GroupError(f"{name} must be a number, got {text!r}") from None


def _address(place: Place) -> bytes:
    return b"\0" + place.name.encode()


def credentials(channel: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel knows them."""
    raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, uid, _ = CREDENTIALS.unpack(raw)
    return pid, uid


def receive_exactly(channel: socket.socket, size: int) -> bytes:
    """Raises GroupError if the other end closes first."""
    data = b""
    while len(data) < size:
        part = channel.recv(size - len(data))
        if not part:
            raise GroupError("a rank of the group ended while the group was being made")
        data += part
    return data


class Deadline:
    """Counts down over all steps of a rendezvous; `monotonic` seconds."""

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s

    def left(self) -> float:
        """Seconds; raises TimeoutError when none are left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def listen(place: Place) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(_address(place))
        listener.listen(place.size)
    except OSError as error:
        listener.close()
        raise GroupError(f"another group of this run exists already ({place.name}): {error}") from error
    return listener


def accept_peers(place: Place, listener: socket.socket, deadline: Deadline, peers: dict[int, Peer]) -> None:
    """Adds to `peers` until every other rank is there; strangers are turned away."""
    while len(peers) < place.size - 1:
        listener.settimeout(deadline.left())
        channel, _ = listener.accept()
        pid, uid = credentials(channel)
        if uid != os.geteuid():
            channel.close()
            continue
        channel.settimeout(deadline.left())
        try:
            magic, protocol, rank, size = HELLO.unpack(receive_exactly(channel, HELLO.size))
        except (GroupError, OSError):
            channel.close()  # whoever it was, it said no hello
            continue
        fits = magic == MAGIC and protocol == PROTOCOL and size == place.size
        if not fits or not 0 < rank < size or rank in peers:
            channel.close()
            raise GroupError(f"process {pid} does not fit this group: rank {rank} of {size}")
        peers[rank] = Peer(rank, pid, channel)


def hand_out(peers: Mapping[int, Peer], descriptors: Sequence[int], deadline: Deadline) -> None:
    """Gives every peer the regions, at most MAX_REGIONS, and returns when all have attached."""
    for peer in peers.values():
        peer.channel.settimeout(deadline.left())
        socket.send_fds(peer.channel, [READY], descriptors)
    for peer in peers.values():
        peer.channel.settimeout(deadline.left())
        receive_exactly(peer.channel, 1)
    for peer in peers.values():
        peer.channel.sendall(READY)


def join(place: Place, deadline: Deadline) -> tuple[Peer, list[int]]:
    """(rank 0, the regions' descriptors, which are the caller's to close)."""
    channel = _connect(place, deadline)
    try:
        pid, uid = credentials(channel)
        if uid != os.geteuid():
            raise GroupError(f"rank 0's socket ({place.name}) belongs to another user (uid {uid})")
        channel.sendall(HELLO.pack(MAGIC, PROTOCOL, place.rank, place.size))
        channel.settimeout(deadline.left())
        message, descriptors, _, _ = socket.recv_fds(channel, 1, MAX_REGIONS)
        if message != READY or not descriptors:
            raise GroupError("rank 0 ended or turned this rank away while the group was being made")
    except BaseException:
        channel.close()
        raise
    return Peer(0, pid, channel), descriptors


def confirm(rank_0: Peer, deadline: Deadline) -> None:
    """Says that this rank has attached and returns when all have."""
    rank_0.channel.settimeout(deadline.left())
    rank_0.channel.sendall(READY)
    receive_exactly(rank_0.channel, 1)


def _connect(place: Place, deadline: Deadline) -> socket.socket:
    while True:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.settimeout(deadline.left())
        try:
            channel.connect(_address(place))
        except (ConnectionRefusedError, BlockingIOError):
            channel.close()
            time.sleep(min(RETRY_S, deadline.left()))
        except BaseException:
            channel.close()
            raise
        else:
            return channel
