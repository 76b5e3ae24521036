"""Ranks that measure collectives together: this process is rank 0, and it starts the others.

Each pins its main thread to a core of its own, while they last. Rank 0 sends a line of JSON per task, and all do the
same: the contestants of a case in turns (turns.py), or one of them so many times. Rank 0 probes the cores before and
after each batch while the others sleep in gloo's broadcast, which is their signal. Closing the pipes ends them; a rank
that dies ends the others' calls with an error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from time import perf_counter

import torch
from torch import distributed

from fastserve import _C
from fastserve.benchmark.collective_cases import CASES, HEAP_BYTES, SYMMETRIC_BYTES, AllReduce
from fastserve.benchmark.contestants import OURS, repeat
from fastserve.benchmark.mpi import Mpi, MpiRanks, start_mpi
from fastserve.benchmark.placement import Placement, classify, probe
from fastserve.benchmark.turns import Buckets, take_timed_turns
from fastserve.distributed.cores import usable_cores
from fastserve.distributed.group import Group, init_group

MAX_CALLS = 1000  # of a batch
TRIAL_CALLS = 3
GLOO_TIMEOUT = timedelta(seconds=60)
END_TIMEOUT_S = 10.0  # for a rank to leave when it is told to
STORE = "FASTSERVE_BENCH_STORE"  # the file where gloo's ranks meet
MPIS = "FASTSERVE_BENCH_MPIS"  # names, as JSON


@dataclass(frozen=True, slots=True)
class Rank:
    """What all ranks go through together."""

    group: Group
    cores: list[int]
    mpis: Mapping[str, MpiRanks | None] = field(default_factory=dict)  # by name; rank 0 holds them

    def measure(self, case: str, *, rounds: int, batch_s: float) -> Buckets:
        """Seconds per call of every contestant, on this rank."""
        contestants = CASES[case].contestants(self.group)
        batches: dict[str, Callable[[], float]] = {
            name: partial(self._batch, call, self._calls_for(call, batch_s))
            for name, call in contestants.items()
        }
        if isinstance(described := CASES[case], AllReduce) and described.dtype == "f32":
            baseline = batches.popitem()
            for name, ranks in self.mpis.items():
                batches[name] = self._mpi_batch(ranks, described.num_bytes, batch_s)
            batches |= [baseline]
        return take_timed_turns(batches, rounds=rounds, probe=self._probe)

    def ours(self, case: str) -> Callable[[], object]:
        """To be called equally often on all ranks."""
        call = CASES[case].contestants(self.group)[OURS]
        self.group.barrier()
        return call

    def _probe(self) -> Placement:
        """Rank 0 measures; the state is the same to both, so that they keep the same buckets."""
        measured = torch.zeros(1, dtype=torch.float64)
        if self.group.rank == 0:
            measured[0] = probe(self.cores).one_way_ns or -1.0
        distributed.broadcast(measured, 0)
        one_way_ns = float(measured[0])
        return Placement(classify(one_way_ns if one_way_ns > 0 else None))

    def _batch(self, call: Callable[[], object], calls: int) -> float:
        """Seconds per call, from a common start."""
        call()
        self.group.barrier()
        start = perf_counter()
        repeat(call, calls)
        return (perf_counter() - start) / calls

    def _mpi_batch(self, ranks: MpiRanks | None, num_bytes: int, batch_s: float) -> Callable[[], float]:
        """Rank 0 tells the MPI's ranks and waits for them, as the others wait for its next probe."""
        if ranks is None:
            return lambda: 0.0
        calls = _calls(batch_s, ranks.all_reduce_s(num_bytes, TRIAL_CALLS))
        return partial(ranks.all_reduce_s, num_bytes, calls)

    def _calls_for(self, call: Callable[[], object], batch_s: float) -> int:
        """The slowest rank's view decides for all: they must make the same number of calls."""
        self._batch(call, TRIAL_CALLS)
        seconds = torch.tensor([self._batch(call, TRIAL_CALLS)], dtype=torch.float64)
        distributed.all_reduce(seconds, op=distributed.ReduceOp.MAX)
        return _calls(batch_s, float(seconds[0]))


def _calls(batch_s: float, seconds: float) -> int:
    """Of so many seconds each, as fill a batch."""
    return max(1, min(MAX_CALLS, round(batch_s / seconds)))


@dataclass(slots=True)
class RankGroup:
    """Rank 0's side: tells the others what all do next, and does its own part."""

    rank: Rank
    processes: list[subprocess.Popen[str]]  # of the others
    _left: int = field(default=0, init=False)  # calls that the others still make

    def measure(self, case: str, *, rounds: int, batch_s: float) -> Buckets:
        self._send({"case": case, "rounds": rounds, "batch_s": batch_s})
        return self.rank.measure(case, rounds=rounds, batch_s=batch_s)

    @contextmanager
    def repeating(self, case: str, *, max_calls: int) -> Iterator[Callable[[], object]]:
        """Our call, to be made at most max_calls times; the others make them all, so the rest is made at the end."""
        self._send({"case": case, "calls": max_calls})
        call = self.rank.ours(case)
        self._left = max_calls

        def counted() -> object:
            assert self._left > 0, f"more than {max_calls} calls"
            self._left -= 1
            return call()

        yield counted
        while self._left:
            counted()

    def _send(self, task: Mapping[str, object]) -> None:
        for process in self.processes:
            assert process.stdin is not None
            print(json.dumps(task), file=process.stdin, flush=True)


@contextmanager
def start_ranks(num_ranks: int, mpis: Sequence[Mpi] = ()) -> Iterator[RankGroup]:
    """All ranks, ready, and as many of each MPI to compare with. Raises MpiError.

    Afterwards this thread's core, its threads and the environment are as before.
    """
    affinity, threads = os.sched_getaffinity(0), (torch.get_num_threads(), _C.ops.num_threads())
    processes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        cores = usable_cores()[:num_ranks] if len(usable_cores()) >= num_ranks else []
        compared = {mpi.name: stack.enter_context(start_mpi(mpi, num_ranks, cores)) for mpi in mpis}
        run = {
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
            "GLOO_SOCKET_IFNAME": "lo",
            STORE: f"{folder}/store",
            MPIS: json.dumps([mpi.name for mpi in mpis]),
        }
        try:
            for rank in range(1, num_ranks):
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "fastserve.benchmark.rank_group"],
                        stdin=subprocess.PIPE,
                        text=True,
                        start_new_session=True,  # Ctrl-C is rank 0's to hear
                        env={**os.environ, **run, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    )
                )
            with _environment({**run, "RANK": "0", "LOCAL_RANK": "0"}), _joined() as joined:
                yield RankGroup(replace(joined, mpis=compared), processes)
            for process in processes:  # after this rank has left, so that no other is kept in a call
                _end(process)
        finally:
            for process in processes:
                process.kill()
                process.communicate()  # closes the pipe as well
            os.sched_setaffinity(0, affinity)
            torch.set_num_threads(threads[0])
            _C.ops.set_num_threads(threads[1])


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has gone already
        process.stdin.close()
    process.wait(END_TIMEOUT_S)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _joined() -> Iterator[Rank]:
    """This process as the rank that its environment says."""
    index, size, cores = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), usable_cores()
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{os.environ[STORE]}",
        rank=index,
        world_size=size,
        timeout=GLOO_TIMEOUT,
    )
    try:
        distributed.all_reduce(torch.zeros(1))
        if len(cores) >= size:
            os.sched_setaffinity(0, {cores[index]})  # this thread alone: gloo's own threads stay free
        _C.ops.set_num_threads(1)
        with init_group(symmetric_bytes=SYMMETRIC_BYTES, heap_bytes=HEAP_BYTES) as group:
            yield Rank(group, cores[:2], dict.fromkeys(json.loads(os.environ[MPIS])))
    finally:
        distributed.destroy_process_group()


def follow() -> None:
    """Another rank: does its part of every task on standard input."""
    with _joined() as rank:
        for line in sys.stdin:
            task = json.loads(line)
            if "calls" in task:
                call = rank.ours(task["case"])
                for _ in range(task["calls"]):
                    call()
            else:
                rank.measure(task["case"], rounds=task["rounds"], batch_s=task["batch_s"])


if __name__ == "__main__":
    follow()
