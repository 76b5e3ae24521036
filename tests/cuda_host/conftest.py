"""In a run of many rooms, the programs of this one are compiled while the tests before them run.

By a process that is no child of the tests': they count their children, and their open files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILDER = pytest.StashKey[int]()


def pytest_collection_finish(session: pytest.Session) -> None:
    rooms = [item.path.parent for item in session.items]
    has_time = HERE in rooms and rooms[0] != HERE
    if has_time and shutil.which("nvcc") and not session.config.option.collectonly:
        session.config.stash[BUILDER] = start_builder()


def pytest_sessionfinish(session: pytest.Session) -> None:
    end_builder(session.config)


@pytest.fixture
def no_builder(pytestconfig: pytest.Config) -> None:
    """What the builder has not made yet the test makes, with all cores."""
    end_builder(pytestconfig)


def start_builder() -> int:
    """The end of its standard input that keeps it running."""
    theirs, ours = os.pipe()
    command = ["setsid", "--fork", sys.executable, "-m", "cuda_host.programs"]
    try:
        subprocess.run(
            command,
            cwd=HERE.parent,
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    finally:
        os.close(theirs)
    return ours


def end_builder(config: pytest.Config) -> None:
    if (lifeline := config.stash.get(BUILDER, None)) is not None:
        del config.stash[BUILDER]
        os.close(lifeline)
