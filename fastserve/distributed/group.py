"""A group of processes that torchrun started, on one host or several, for the ops and collectives from Python.

group = init_group()                       # in every process
fastserve.ops.matmul_all_reduce(x, w, group=group)
group.all_reduce(x)                        # in place
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from fastserve import _C
from fastserve.distributed.directory import Directory, TcpDirectory, own_address
from fastserve.distributed.group_member import Group
from fastserve.distributed.hosts import Layout, this_host
from fastserve.distributed.mesh import SECRET_BYTES, Level, Mesh, PeerConnections
from fastserve.distributed.rendezvous import (
    Deadline,
    Peer,
    Place,
    accept_peers,
    confirm,
    hand_out,
    join,
    listen,
    spans_hosts,
)
from fastserve.errors import GroupError

__all__ = ["Group", "init_group", "meet"]

SYMMETRIC_BYTES = 8 << 20  # 512 rows of 4096 floats in one go; larger matrices go in slices
SILENCE_S = 5.0
TIMEOUT_S = 60.0  # ranks that import torch from a cold disk start many seconds apart


def init_group(
    *,
    symmetric_bytes: int = SYMMETRIC_BYTES,
    heap_bytes: int = 0,
    timeout_s: float = TIMEOUT_S,
    silence_s: float = SILENCE_S,
    wire_bits: int = 32,
) -> Group:
    """Makes the group of all processes of this torchrun, on one host or several; every one of them calls it.

    symmetric_bytes  what one fused op can hold per rank; rank 0's counts. Larger matrices go in slices.
    heap_bytes       for Group.empty, of each rank; rank 0's counts; ranks of one host only
    silence_s        how long a host may be cut off before its ranks count as dead
    wire_bits        8: fp32 sums of 4096 elements or more cross between hosts in 8 bits, for slow links. An element's
                     error is at most max |x| / 254 of the 64 around it, from every part and once from the sum;
                     NaN and infinity spread over their 64. Every rank gives the same.
    Across hosts rank 0 listens at port FASTSERVE_PORT (MASTER_PORT + 1) of MASTER_ADDR, and every rank at a port
    that the system chooses, of the address from which it reaches MASTER_ADDR (or FASTSERVE_ADDRESS).
    Raises GroupError if torchrun's variables are missing or wrong, or a rank does not come within timeout_s;
    ValueError for other wire_bits than 8 and 32.
    """
    if wire_bits not in (8, 32):
        raise ValueError(f"wire_bits must be 8 or 32, got {wire_bits}")
    place = Place.from_environment(os.environ)
    deadline = Deadline(timeout_s)
    with _explained(place.rank, timeout_s):
        if not spans_hosts(os.environ):
            return _meet(place, deadline, symmetric_bytes, heap_bytes)
        links = Links(silence_s, wire_bits)
        with closing(TcpDirectory.from_environment(place, os.environ, deadline)) as directory:
            return _meet_anywhere(directory, place.rank, deadline, symmetric_bytes, links)


@dataclass(frozen=True, slots=True)
class Links:
    """Between hosts; init_group says what these are."""

    silence_s: float = SILENCE_S
    wire_bits: int = 32


def meet(directory: Directory, rank: int, *, symmetric_bytes: int, timeout_s: float) -> Group:
    """Makes the group of all ranks that share the directory, wherever they are. Raises GroupError."""
    with _explained(rank, timeout_s):
        return _meet_anywhere(directory, rank, Deadline(timeout_s), symmetric_bytes, Links())


@contextlib.contextmanager
def _explained(rank: int, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        here = f"; {error}" if str(error).startswith("here") else ""
        raise GroupError(f"rank {rank} waited {timeout_s:g} s for the others of its group{here}") from None
    except (OSError, struct.error, msgspec.MsgspecError) as error:
        raise GroupError(f"the group could not be made: {error}") from error


class _Arrival(msgspec.Struct, frozen=True):
    host: str
    secret: str  # rank 0's counts: the name of the group's sockets, and what ranks of other hosts show


class _Listening(msgspec.Struct, frozen=True):
    address: str
    port: int


def _meet_anywhere(
    directory: Directory, rank: int, deadline: Deadline, symmetric_bytes: int, links: Links
) -> Group:
    own = _Arrival(this_host(), secrets.token_hex(SECRET_BYTES))
    arrivals = [
        msgspec.json.decode(entry, type=_Arrival)
        for entry in directory.share("hosts", msgspec.json.encode(own))
    ]
    layout = Layout.of([arrival.host for arrival in arrivals])
    name = f"fastserve-{os.geteuid()}-{arrivals[0].secret}"
    if len(layout.hosts) == 1:
        return _meet(Place(rank, len(arrivals), name), deadline, symmetric_bytes)
    secret = bytes.fromhex(arrivals[0].secret)
    address = own_address()
    with closing(Mesh(rank, address, secret, links.silence_s)) as mesh:
        listening = _Listening(address, mesh.port)
        entries = [
            msgspec.json.decode(entry, type=_Listening)
            for entry in directory.share("ports", msgspec.json.encode(listening))
        ]
        addresses = [(entry.address, entry.port) for entry in entries]
        place = Place(layout.local(rank).index(rank), len(layout.local(rank)), name)
        sizes = [len(arrivals), place.size] if layout.across(rank) else [len(arrivals)]
        shared = _share(place, deadline, sizes, 1)
        connections = mesh.connect(_levels(layout, rank), addresses, deadline)
        return _span(layout, rank, shared, connections, links.wire_bits)


def _levels(layout: Layout, rank: int) -> list[Level]:
    """What is to be connected: this rank with all of other hosts; with those that have its place there."""
    across = layout.across(rank)
    whole = Level(0, {peer: peer for peer in layout.remote(rank)})
    return [whole, Level(1, {peer: across.index(peer) for peer in across if peer != rank})]


def _span(
    layout: Layout,
    rank: int,
    shared: Shared,
    connections: Sequence[Sequence[PeerConnections]],
    wire_bits: int,
) -> Group:
    exchange = _C.Exchange(shared.regions[0], rank)
    local_peers = across_peers = None
    if across := layout.across(rank):
        local_peers = _C.PeerGroup(_C.Exchange(shared.regions[1], layout.local(rank).index(rank)))
        region = _C.SharedRegion.create(len(across), 1, _C.peer_memory_bytes(len(across)))
        across_peers = _C.PeerGroup(
            _C.Exchange(region, across.index(rank)),
            connections[1],
            wire_bits=wire_bits,
            whole=shared.regions[0],
        )
    peers = _C.PeerGroup(exchange, connections[0], local_peers, across_peers, wire_bits)
    watchers = [_C.Watcher(shared.watched, region) for region in shared.regions]
    return Group(peers, exchange, watchers, spans_hosts=True)


def _meet(place: Place, deadline: Deadline, symmetric_bytes: int, heap_bytes: int = 0) -> Group:
    """All ranks of the place on this host."""
    shared = _share(place, deadline, [place.size], symmetric_bytes, heap_bytes)
    (region,) = shared.regions
    exchange = _C.Exchange(region, place.rank)
    return Group(_C.PeerGroup(exchange), exchange, [_C.Watcher(shared.watched, region)], spans_hosts=False)


class Shared(NamedTuple):
    """Rank 0 of a host watches all others there, and they watch rank 0: who notices tells everybody by the epoch."""

    regions: list[_C.SharedRegion]
    watched: list[int]


def _share(
    place: Place, deadline: Deadline, sizes: Sequence[int], symmetric_bytes: int, heap_bytes: int = 0
) -> Shared:
    """Regions of so many ranks, which rank 0 of the place makes."""
    if place.rank > 0:
        return _join(place, deadline, sizes)
    regions = [
        _C.SharedRegion.create(size, symmetric_bytes, _C.peer_memory_bytes(size, heap_bytes))
        for size in sizes
    ]
    peers: dict[int, Peer] = {}
    try:
        if place.size > 1:
            with listen(place) as listener:
                accept_peers(place, listener, deadline, peers)
            hand_out(peers, [region.fd for region in regions], deadline)
        return Shared(regions, [peer.pid for peer in peers.values()])
    except TimeoutError:
        raise TimeoutError(f"here: {sorted([place.rank, *peers])}") from None
    finally:
        for peer in peers.values():
            peer.channel.close()


def _join(place: Place, deadline: Deadline, sizes: Sequence[int]) -> Shared:
    try:
        rank_0, descriptors = join(place, deadline)
    except TimeoutError:
        raise TimeoutError(f"here: [{place.rank}]") from None
    try:
        regions = [_C.SharedRegion.attach(descriptor) for descriptor in descriptors]
        if [region.num_ranks for region in regions] != list(sizes):
            found = [region.num_ranks for region in regions]
            raise GroupError(f"rank 0 made groups of {found}, expected {list(sizes)}")
        confirm(rank_0, deadline)
    except RuntimeError as error:
        raise GroupError(str(error)) from error
    finally:
        rank_0.channel.close()
        for descriptor in descriptors:
            os.close(descriptor)
    return Shared(regions, [rank_0.pid])
