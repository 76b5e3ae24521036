"""In a run of many rooms, the programs of this one are compiled while the tests before them run."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .programs import make_in_background

HERE = Path(__file__).parent
MAKING = pytest.StashKey[ThreadPoolExecutor]()


def pytest_collection_finish(session: pytest.Session) -> None:
    rooms = [item.path.parent for item in session.items]
    has_time = HERE in rooms and rooms[0] != HERE
    if has_time and shutil.which("nvcc") and not session.config.option.collectonly:
        session.config.stash[MAKING] = make_in_background()


def pytest_sessionfinish(session: pytest.Session) -> None:
    making = session.config.stash.get(MAKING, None)
    if making is not None:
        making.shutdown(cancel_futures=True)
