"""Runs the native tests: each tests/csrc/test_*.cpp is an executable that exits with 0 when all is well."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TESTS = sorted(path.stem for path in Path(__file__).parent.glob("test_*.cpp"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TESTS)
def test_native(name: str, native_build: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "FASTSERVE_ISA"}
    done = subprocess.run(
        [str(native_build / name)], capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
