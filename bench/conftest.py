"""Options of bench/ops.py, the machine's roofs, and the lines at the end of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastserve import _C
from fastserve.benchmark.machine import Machine, describe_machine
from fastserve.benchmark.report import Line
from fastserve.benchmark.roofs import Roofs, measure_roofs
from fastserve.benchmark.run_file import write_run
from fastserve.distributed.cores import usable_cores

LINES = pytest.StashKey[list[Line]]()
ROOFS = pytest.StashKey[Roofs | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastserve")
    group.addoption("--turns", type=int, default=15, help="batches of every contestant")
    group.addoption("--batch-ms", type=float, default=10.0, help="length of a batch")
    group.addoption("--op-threads", type=int, default=None, help="threads of ours and torch's")
    group.addoption(
        "--mpi", type=Path, action="append", default=[], help="a Python that has mpi4py; may be repeated"
    )
    group.addoption(
        "--peer", choices=("torch", "zentorch"), default="torch", help="of matmul in bench/ops.py"
    )
    group.addoption("--lines-json", type=Path, default=None, help="file for the lines, for bench/report.py")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []
    config.stash[ROOFS] = None


@pytest.fixture(scope="session")
def num_threads(pytestconfig: pytest.Config) -> int:
    threads = pytestconfig.getoption("--op-threads") or len(usable_cores())
    _C.ops.set_num_threads(threads)
    torch.set_num_threads(threads)
    return int(threads)


@pytest.fixture(scope="session")
def machine() -> Machine:
    return describe_machine()


@pytest.fixture(scope="session")
def roofs(num_threads: int, pytestconfig: pytest.Config) -> Roofs:
    found = measure_roofs(usable_cores()[:num_threads])
    pytestconfig.stash[ROOFS] = found
    return found


@pytest.fixture
def lines(pytestconfig: pytest.Config) -> list[Line]:
    """Where a benchmark puts what it found."""
    return pytestconfig.stash[LINES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[LINES]
    if found:
        terminalreporter.section("lines")
    for line in found:
        terminalreporter.write_line(str(line))
    path: Path | None = config.getoption("--lines-json")
    if path is not None:
        write_run(path, found, config.stash[ROOFS])
