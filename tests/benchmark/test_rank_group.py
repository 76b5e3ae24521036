"""Ranks measure together, and none outlives the others."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastserve import _C
from fastserve.benchmark.collective_cases import CASES
from fastserve.benchmark.collective_lines import lines as lines_of
from fastserve.benchmark.machine import describe_machine
from fastserve.benchmark.mpi import Mpi, MpiError, own_mpi, start_mpi
from fastserve.benchmark.rank_group import RankGroup, start_ranks
from fastserve.errors import RankLostError

CASE = "all_reduce-f32-4_KB"


def settings() -> tuple[set[int], int, int, dict[str, str]]:
    return os.sched_getaffinity(0), torch.get_num_threads(), _C.ops.num_threads(), dict(os.environ)


@pytest.fixture
def pair() -> Iterator[RankGroup]:
    with start_ranks(2) as pair:
        yield pair


def test_every_contestant_is_measured_in_every_round(pair: RankGroup) -> None:
    buckets = pair.measure(CASE, rounds=2, batch_s=1e-4)
    counts = {
        name: sum(len(found.get(name, [])) for found in buckets.seconds.values())
        for name in ("fastserve", "gloo")
    }
    assert counts == {"fastserve": 2, "gloo": 2}
    for line in lines_of(CASES[CASE], buckets, describe_machine(), num_ranks=2):
        assert (line.op, line.shape, line.dtype) == ("all_reduce", "4 KB", "f32")
        assert str(line.baseline).startswith("gloo (")


def test_calls_that_were_not_made_are_made_up_for(pair: RankGroup) -> None:
    with pair.repeating(CASE, max_calls=5) as ours:
        ours()
    with pair.repeating(CASE, max_calls=3) as ours:
        for _ in range(3):
            ours()
        with pytest.raises(AssertionError, match="more than 3 calls"):
            ours()


def test_all_is_as_before_afterwards() -> None:
    before = settings()
    with start_ranks(2) as pair:
        (process,) = pair.processes
    assert settings() == before
    assert process.returncode == 0


def test_a_lost_rank_ends_the_measurement() -> None:
    with start_ranks(2) as pair:
        pair.processes[0].kill()
        with pytest.raises((RuntimeError, OSError, RankLostError)):
            pair.measure(CASE, rounds=1000, batch_s=1e-3)
        pair.processes[0].wait()
    assert not torch.distributed.is_initialized()


def test_more_ranks_than_cores_measure_too() -> None:
    with start_ranks(3) as group:
        buckets = group.measure(CASE, rounds=1, batch_s=1e-4)
    assert set(buckets.contestants) == {"fastserve", "fastserve by address", "gloo"}


def test_an_mpi_takes_part_before_the_baseline() -> None:
    mpi = own_mpi()
    assert mpi is not None, "the test extra brings mpi4py and Open MPI"
    assert mpi.name.startswith("Open MPI 5")
    with start_ranks(2, [mpi]) as pair:
        buckets = pair.measure(CASE, rounds=2, batch_s=1e-4)
        others = pair.measure("all_reduce-bf16-4_KB", rounds=1, batch_s=1e-4)  # a type that MPI lacks
    *names, baseline = buckets.contestants
    assert names[-1] == mpi.name
    assert baseline == "gloo"
    measured = [seconds for found in buckets.seconds.values() for seconds in found.get(mpi.name, [])]
    assert len(measured) == 2
    assert min(measured) > 0
    assert mpi.name not in others.contestants


def test_an_interpreter_without_mpi_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python"
    with pytest.raises(MpiError, match="No such file"):
        Mpi.of(python)
    python.write_text("#!/bin/sh\necho 'no module named mpi4py' >&2; exit 1\n")
    python.chmod(0o755)
    with pytest.raises(MpiError, match="has no MPI: no module named mpi4py"):
        Mpi.of(python)
    python.write_text("#!/bin/sh\necho 'Open MPI v5.0.1, package'\n")
    with pytest.raises(MpiError, match="no mpirun beside it"):
        Mpi.of(python)


def test_an_mpi_that_ends_early_is_an_error(tmp_path: Path) -> None:
    python, mpirun = tmp_path / "python", tmp_path / "mpirun"
    python.write_text("#!/bin/sh\necho 'MPICH Version: 5.0.2'\n")
    mpirun.write_text(
        f"#!{sys.executable}\nimport json, socket, sys\nchannel = socket.socket(socket.AF_UNIX)\n"
        "channel.connect(sys.argv[5])\nchannel.sendall(b'{\"rank\": 0}\\n')\n"
    )
    for file in (python, mpirun):
        file.chmod(0o755)
    with (
        start_mpi(Mpi.of(python), 1, []) as ranks,
        pytest.raises(MpiError, match="a rank of the measured MPI has ended"),
    ):
        ranks.all_reduce_s(1024, 1)
