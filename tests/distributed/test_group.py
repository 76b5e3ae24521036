"""Processes with torchrun's variables make a group, reduce alike, and notice each other's end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastserve.distributed.rendezvous import Place, listen

SCRIPT = Path(__file__).with_name("group_rank.py")
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60


class Run:
    """The processes of one run; started one by one, as torchrun would."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.run_id = uuid.uuid4().hex
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def environment(self, rank: int) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29500",
            "TORCHELASTIC_RUN_ID": self.run_id,
        }

    def start(self, rank: int, behaviour: str, **variables: str) -> None:
        self.processes[rank] = subprocess.Popen(
            [sys.executable, str(SCRIPT), behaviour],
            env={**self.environment(rank), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_all(self, behaviour: str) -> None:
        for rank in range(self.size):
            self.start(rank, behaviour)

    def output(self, rank: int) -> str:
        text, _ = self.processes[rank].communicate(timeout=TIMEOUT_S)
        return text.strip()

    def outputs(self) -> list[str]:
        return [self.output(rank) for rank in sorted(self.processes)]

    def codes(self) -> list[int]:
        return [process.wait(TIMEOUT_S) for _, process in sorted(self.processes.items())]

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    run = Run(getattr(request, "param", 2))
    yield run
    run.kill()


@pytest.mark.parametrize("run", [1, 2, 3, 5], indirect=True)
def test_ranks_sum_tensors_of_any_shape(run: Run) -> None:
    run.start_all("reduce_shapes")
    assert run.outputs() == [""] * run.size
    assert run.codes() == [0] * run.size


@pytest.mark.parametrize("run", [3], indirect=True)
def test_all_ranks_end_with_the_same_bits(run: Run) -> None:
    run.start_all("reduce_order_matters")
    first, *others = run.outputs()
    assert len(first) == 512 * 8
    assert others == [first, first]


@pytest.mark.parametrize("run", [3], indirect=True)
def test_killed_rank_is_named_to_the_others_within_a_second(run: Run) -> None:
    run.start_all("lose_rank_1")
    assert run.processes[1].wait(TIMEOUT_S) == -9
    lost = time.monotonic()
    message = f"RankLostError: rank 1 of 3 (pid {run.processes[1].pid}) died"
    assert [run.output(0), run.output(2)] == [message, message]
    assert time.monotonic() - lost < 1.0


def test_rank_that_leaves_is_named_to_who_waits_for_it(run: Run) -> None:
    run.start_all("leave_early")
    message = f"RankLostError: rank 1 of 2 (pid {run.processes[1].pid}) left the group"
    assert run.output(1) == ""
    assert run.output(0).startswith(message)


def test_ctrl_c_ends_a_wait_for_a_rank_that_never_comes(run: Run) -> None:
    run.start_all("interrupt_rank_0")
    assert run.output(0) == "KeyboardInterrupt"


def test_wrong_tensors_are_refused(run: Run) -> None:
    run.start_all("refuse")
    wrong = "tensor must be contiguous numbers on the CPU, got torch.float8_e5m2 on cpu"
    not_tensors = [f"tensor must be a torch tensor, got {name}" for name in ("list", "array")]
    assert run.outputs() == ["\n".join([wrong, *not_tensors])] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_whose_peers_never_come_says_so(run: Run, rank: int) -> None:
    run.start(rank, "reduce_shapes", TIMEOUT_S="0.2")
    assert (
        run.output(rank)
        == f"GroupError: rank {rank} waited 0.2 s for the others of its group; here: [{rank}]"
    )


def test_second_rank_0_of_a_run_is_refused(run: Run) -> None:
    run.start(0, "reduce_shapes", TIMEOUT_S="0.2")
    with listen(Place.from_environment(run.environment(0))):
        assert run.output(0).startswith("GroupError: another group of this run exists already")


def test_rank_of_another_world_is_turned_away(run: Run) -> None:
    run.start(0, "reduce_shapes")
    run.start(1, "reduce_shapes", WORLD_SIZE="3", LOCAL_WORLD_SIZE="3")
    assert run.output(0).endswith("does not fit this group: rank 1 of 3")
    assert run.output(1) == "GroupError: rank 0 ended or turned this rank away while the group was being made"
