"""What torchrun says is read with care; the processes of one run find each other, others do not."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from fastserve.distributed.rendezvous import (
    Deadline,
    Peer,
    Place,
    accept_peers,
    confirm,
    credentials,
    hand_out,
    join,
    listen,
)
from fastserve.errors import GroupError

TORCHRUN = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "a-run",
}


def test_place_is_what_torchrun_says() -> None:
    place = Place.from_environment(TORCHRUN)
    assert (place.rank, place.size) == (1, 2)


@pytest.mark.parametrize("variable", ["MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"])
def test_runs_have_names_of_their_own(variable: str) -> None:
    first, other = (Place.from_environment({**TORCHRUN, variable: value}).name for value in ("12", "13"))
    assert first != other


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": None}, "RANK is not set: start this script with `torchrun"),
        ({"RANK": "two"}, "RANK must be a number, got 'two'"),
        ({"RANK": "2"}, r"RANK must be in \[0, WORLD_SIZE\), got 2 of 2"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not set"),
    ],
)
def test_environment_that_is_not_torchruns_is_refused(variables: dict[str, str | None], message: str) -> None:
    changed = {**TORCHRUN, **variables}
    with pytest.raises(GroupError, match=message):
        Place.from_environment({name: value for name, value in changed.items() if value is not None})


def test_descriptor_reaches_the_other_rank_past_a_stranger() -> None:
    places = [Place(rank, 2, f"fastserve-test-{os.getpid()}") for rank in range(2)]
    shared = os.memfd_create("test")
    os.write(shared, b"the region")
    received: list[bytes] = []

    def rank_1() -> None:
        peer, (descriptor,) = join(places[1], Deadline(10))
        received.append(os.pread(descriptor, 100, 0))
        os.close(descriptor)
        confirm(peer, Deadline(10))
        peer.channel.close()

    peers: dict[int, Peer] = {}
    with listen(places[0]) as listener:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(listener.getsockname())
            assert credentials(stranger) == (os.getpid(), os.geteuid())
        thread = threading.Thread(target=rank_1)
        thread.start()
        accept_peers(places[0], listener, Deadline(10), peers)
    assert peers[1].pid == os.getpid()
    hand_out(peers, [shared], Deadline(10))
    thread.join()
    peers[1].channel.close()
    os.close(shared)
    assert received == [b"the region"]
