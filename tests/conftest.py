"""Fixtures that tests of several rooms share; real models come from $FASTSERVE_HOME, filled by `fastserve pull`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

SMOLLM2 = "smollm2-135m"

# Triton kernels run in its interpreter, on CPU tensors: it is chosen when a kernel is defined.
os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure() -> None:
    """Ctrl-C means Ctrl-C also where the shell that started the tests in the background had it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The pulled model; its absence is a failure, not a skip."""
    from fastserve.weights.store import resolve_model

    return resolve_model(SMOLLM2, offline=True)


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_path: Path) -> dict[str, Any]:
    from fastserve import _C

    return dict(_C.GgufFile(str(smollm2_path)).metadata)
