"""Ranks learn of each other past strangers, and what is wrong with an address is said."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest

from fastserve.distributed.directory import StoreDirectory, TcpDirectory, own_address
from fastserve.distributed.rendezvous import Deadline, Place
from fastserve.errors import GroupError


class Store:
    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, timeout=10)
            return self._values[key].encode()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def run_ranks(size: int, body: object) -> None:
    assert callable(body)
    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_all_ranks_get_what_each_brought_by_torchs_store() -> None:
    store, got = Store(), {}

    def rank(me: int) -> None:
        directory = StoreDirectory(store, me, 3)
        got[me] = [directory.share(subject, f"{subject} of {me}".encode()) for subject in ("hosts", "ports")]

    run_ranks(3, rank)
    expected = [[f"{subject} of {me}".encode() for me in range(3)] for subject in ("hosts", "ports")]
    assert got == dict.fromkeys(range(3), expected)


def test_all_ranks_get_what_each_brought_over_tcp_past_strangers() -> None:
    port, got = free_port(), {}
    strangers = []

    def rank(me: int) -> None:
        deadline = Deadline(20)
        if me == 1:
            for hello in (b"GET / HTTP/1.1\r\n\r\n" + bytes(100), b""):
                stranger = (
                    socket.create_connection(("127.0.0.1", port), timeout=5) if _listens(port) else None
                )
                if stranger is not None:
                    stranger.sendall(hello)
                    strangers.append(stranger)
        with closing(TcpDirectory(Place(me, 3, "a-run"), ("127.0.0.1", port), deadline)) as directory:
            got[me] = [directory.share("hosts", b"host %d" % me), directory.share("ports", b"port %d" % me)]

    run_ranks(3, rank)
    for stranger in strangers:
        stranger.close()
    assert len(strangers) == 2
    expected = [[b"host 0", b"host 1", b"host 2"], [b"port 0", b"port 1", b"port 2"]]
    assert got == {me: expected for me in range(3)}


def _listens(port: int) -> bool:
    deadline = Deadline(10)
    while deadline.left():
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
    return False


def test_another_run_does_not_get_in() -> None:
    port = free_port()
    refused: list[str] = []

    def rank(me: int) -> None:
        place = Place(me, 2, "this-run" if me == 0 else "another-run")
        try:
            with closing(TcpDirectory(place, ("127.0.0.1", port), Deadline(1))) as directory:
                directory.share("hosts", b"")
        except (GroupError, TimeoutError, ConnectionError) as error:
            refused.append(type(error).__name__)

    run_ranks(2, rank)
    assert len(refused) == 2


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "29500"}, "rank 0 cannot listen at 192.0.2.1:29501"),
        ({"MASTER_ADDR": "no host", "MASTER_PORT": "29500"}, "no host is no address that is known here"),
        (
            {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "FASTSERVE_PORT": "x"},
            "FASTSERVE_PORT must be a number",
        ),
    ],
)
def test_what_is_wrong_with_an_address_is_said(variables: dict[str, str], message: str) -> None:
    with pytest.raises(GroupError, match=message):
        TcpDirectory.from_environment(Place(0, 2, "a-run"), variables, Deadline(5))


def test_own_address_is_the_one_that_reaches_the_master_or_the_one_named() -> None:
    assert own_address({"MASTER_ADDR": "127.0.0.1"}) == "127.0.0.1"
    assert own_address({"MASTER_ADDR": "127.0.0.1", "FASTSERVE_ADDRESS": "192.0.2.7"}) == "192.0.2.7"
    with pytest.raises(GroupError, match="set FASTSERVE_ADDRESS"):
        own_address({})
