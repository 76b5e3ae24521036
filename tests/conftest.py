"""Fixtures that tests of several rooms share; real models come from $FASTSERVE_HOME, filled by `fastserve pull`."""

from __future__ import annotations

import os
import signal
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SMOLLM2 = "smollm2-135m"

REQUIRE_CUDA = "FASTSERVE_REQUIRE_CUDA"  # set: a GPU that is missing is a failure


def pytest_configure(config: pytest.Config) -> None:
    # Ctrl-C means Ctrl-C also where the shell that started the tests in the background had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Triton kernels run in its interpreter, on CPU tensors, unless only tests for GPUs were asked for: whether
    # they do is settled for a whole process, when the first kernel is defined.
    os.environ["TRITON_INTERPRET"] = "0" if config.option.markexpr == "cuda" else "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    if (missing := _missing_for_cuda()) and os.environ.get(REQUIRE_CUDA) == "1":
        pytest.exit(f"{REQUIRE_CUDA}=1: {missing}", returncode=1)  # once, and not for every test
    if missing:
        pytest.skip(missing)


@cache
def _missing_for_cuda() -> str:
    """Why tests for GPUs cannot run; empty: they can."""
    import torch

    with warnings.catch_warnings():  # where a driver is too old, torch says so by a warning
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            return "no CUDA device"
    return (
        "Triton is interpreted in this run: pytest -m cuda" if os.environ["TRITON_INTERPRET"] == "1" else ""
    )


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The pulled model; its absence is a failure, not a skip."""
    from fastserve.weights.store import resolve_model

    return resolve_model(SMOLLM2, offline=True)


@pytest.fixture(scope="session")
def short_model(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two layers of a real model: all ops, in a fifteenth of the time."""
    from fastserve.testing.convert import convert  # gguf is not everywhere where GPUs are tested

    return convert(smollm2_path, tmp_path_factory.mktemp("models") / "short.gguf", "Q8_0", num_layers=2)


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_path: Path) -> dict[str, Any]:
    from fastserve import _C

    return dict(_C.GgufFile(str(smollm2_path)).metadata)
