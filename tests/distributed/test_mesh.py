"""Pairs of ranks are connected as often as they should be; who does not know the secret is turned away."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import closing

from fastserve.distributed.mesh import HELLO, NUM_CONNECTIONS, SECRET_BYTES, Level, Mesh, PeerConnections
from fastserve.distributed.rendezvous import Deadline

SECRET = bytes(range(SECRET_BYTES))


def test_every_pair_is_connected_past_strangers() -> None:
    meshes = [Mesh(rank, "127.0.0.1", SECRET, 5.0) for rank in range(3)]
    addresses = [("127.0.0.1", mesh.port) for mesh in meshes]
    strangers = [socket.create_connection(addresses[0]) for _ in range(3)]
    strangers[0].sendall(HELLO.pack(bytes(SECRET_BYTES), 1, 0, 0))  # the place of a rank, but not the secret
    strangers[1].sendall(HELLO.pack(SECRET, 1, 7, 0))  # no such level
    strangers[2].close()
    made: dict[int, list[list[PeerConnections]]] = {}

    def connect(rank: int) -> None:
        whole = Level(0, {peer: peer for peer in range(3) if peer != rank})
        made[rank] = meshes[rank].connect([whole], addresses, Deadline(20))

    threads = [threading.Thread(target=connect, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = {
        (rank, peer, index): socket.socket(fileno=fd)
        for rank, (connections,) in made.items()
        for peer, _, streams, mail, obituary in connections
        for index, fd in enumerate([*streams, mail, obituary])
    }
    assert len(ends) == 6 * NUM_CONNECTIONS
    for (rank, peer, index), end in ends.items():
        assert end.getpeername() == ends[peer, rank, index].getsockname()
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
    for channel in [*ends.values(), *strangers]:
        channel.close()
    for mesh in meshes:
        mesh.close()


def test_a_rank_that_never_comes_is_a_timeout_and_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with closing(Mesh(0, "127.0.0.1", SECRET, 5.0)) as mesh:
        try:
            mesh.connect([Level(0, {1: 1})], [("127.0.0.1", 1)] * 2, Deadline(0.2))
        except TimeoutError:
            pass
        else:
            raise AssertionError("nobody was there")
    assert len(os.listdir("/proc/self/fd")) == before
