"""MPI libraries as contestants of all_reduce: ranks of their own, which sleep while others are measured."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0
RANK_SCRIPT = Path(__file__).with_name("mpi_rank.py")


class MpiError(Exception):
    """An interpreter's MPI cannot be measured; the text says why."""


@dataclass(frozen=True, slots=True)
class Mpi:
    """An interpreter with mpi4py, and the launcher of its library beside it."""

    python: Path
    name: str  # as "Open MPI 5.0.11"

    @classmethod
    def of(cls, python: Path) -> Mpi:
        """Raises MpiError where there is no mpi4py, no library or no mpirun."""
        # Not initialised, for alone it would leave files behind.
        ask = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
        try:
            answer = subprocess.run(
                [python, "-c", ask], check=False, capture_output=True, text=True, timeout=START_TIMEOUT_S
            )
        except OSError as error:
            raise MpiError(f"{python}: {error.strerror}") from error
        if answer.returncode:
            raise MpiError(f"{python} has no MPI: {answer.stderr.strip().splitlines()[-1]}")
        found = re.search(r"(Open MPI|MPICH)\D*([\d.]+\d)", answer.stdout)
        if found is None:
            raise MpiError(f"{python}: only Open MPI and MPICH are known, got {answer.stdout.strip()[:60]}")
        if not (python.parent / "mpirun").exists():
            raise MpiError(f"{python} has no mpirun beside it")
        return cls(python, " ".join(found.groups()))

    def command(self, num_ranks: int, arguments: Sequence[str], *, crowded: bool) -> list[str]:
        """crowded: there are more ranks than cores, so whoever waits should yield."""
        options = ["-n", str(num_ranks)]
        if self.name.startswith("Open MPI"):
            options += ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
            options += ["--mca", "mpi_yield_when_idle", "1"] if crowded else []
        return [str(self.python.parent / "mpirun"), *options, str(self.python), str(RANK_SCRIPT), *arguments]


def own_mpi() -> Mpi | None:
    """This interpreter's, where the test extra brought one."""
    if find_spec("mpi4py") is None:
        return None
    with suppress(MpiError):
        return Mpi.of(Path(sys.executable))
    return None


@dataclass(frozen=True, slots=True)
class _Rank:
    """Told and heard in lines of JSON. Raises MpiError once the rank has ended."""

    channel: socket.socket
    answers: IO[bytes]

    def tell(self, task: object) -> None:
        try:
            self.channel.sendall(json.dumps(task).encode() + b"\n")
        except ConnectionError as error:
            raise _ended() from error

    def hear(self) -> Any:
        try:
            line = self.answers.readline()
        except ConnectionError as error:
            raise _ended() from error
        if not line:
            raise _ended()
        return json.loads(line)


class MpiRanks:
    """Running ranks; they do nothing between calls."""

    def __init__(self, ranks: Sequence[_Rank]) -> None:
        self._ranks = ranks

    def all_reduce_s(self, num_bytes: int, calls: int) -> float:
        """Seconds of a sum of fp32, as rank 0 sees them. Raises MpiError when a rank has gone."""
        for rank in self._ranks:
            rank.tell({"count": num_bytes // 4, "calls": calls})
        seconds, *_ = [float(rank.hear()) for rank in self._ranks]
        return seconds


@contextmanager
def start_mpi(mpi: Mpi, num_ranks: int, cores: Sequence[int]) -> Iterator[MpiRanks]:
    """cores: one for each rank to stay on, or none. Raises MpiError when they do not all start."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{folder}/ranks")
        listener.listen(num_ranks)
        listener.settimeout(START_TIMEOUT_S)
        arguments = [f"{folder}/ranks", *(str(core) for core in cores)]
        process = subprocess.Popen(
            mpi.command(num_ranks, arguments, crowded=not cores),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process to hear
            env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
        )
        stack.callback(_end, process)
        by_rank: dict[int, _Rank] = {}
        for _ in range(num_ranks):
            try:
                channel = stack.enter_context(listener.accept()[0])
            except TimeoutError as error:
                raise MpiError(f"{mpi.name}: {len(by_rank)} of {num_ranks} ranks came") from error
            rank = _Rank(channel, stack.enter_context(channel.makefile("rb")))
            by_rank[rank.hear()["rank"]] = rank
        yield MpiRanks([by_rank[rank] for rank in range(num_ranks)])


def _ended() -> MpiError:
    return MpiError("a rank of the measured MPI has ended")


def _end(process: subprocess.Popen[bytes]) -> None:
    """After the sockets are closed, which the ranks take as the end."""
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
