"""Builds and runs the native tests: each tests/csrc/test_*.cpp is an executable that exits with 0 when all is well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "native"
TESTS = sorted(path.stem for path in (ROOT / "tests" / "csrc").glob("test_*.cpp"))


@pytest.fixture(scope="session")
def native_build() -> Path:
    """The core library and its tests, compiled without Python; kept between runs."""
    # The tools of this environment, as the install had them: another cmake would compile everything anew.
    where = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    cmake, ninja = (shutil.which(name, path=where) or name for name in ("cmake", "ninja"))
    configure = [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(BUILD), "-DFASTSERVE_PYTHON=OFF"]
    configure.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
    build = [cmake, "--build", str(BUILD), "--target", *TESTS]
    for command in ([*configure, "-DCMAKE_BUILD_TYPE=Release"], build):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return BUILD


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TESTS)
def test_native(name: str, native_build: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "FASTSERVE_ISA"}
    done = subprocess.run(
        [str(native_build / name)], capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
