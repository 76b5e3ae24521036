"""The native tests, built with CMake for this machine and for others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIGESTS = "op_digests"
AARCH64_COMPILER, AARCH64_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
REQUIRE_AARCH64 = (
    "FASTSERVE_REQUIRE_AARCH64"  # set: a cross compiler or emulator that is missing is a failure
)


def _build(where: Path, options: list[str], targets: list[str]) -> Path:
    """Builds without Python; kept between runs."""
    # The tools of this environment, as the install had them: another cmake would compile everything anew.
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    cmake, ninja = (shutil.which(name, path=path) or name for name in ("cmake", "ninja"))
    configure = [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(where), "-DFASTSERVE_PYTHON=OFF"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=Release", *options]
    for command in (configure, [cmake, "--build", str(where), "--target", *targets]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return where


@pytest.fixture(scope="session")
def native_build() -> Path:
    tests = sorted(path.stem for path in Path(__file__).parent.glob("test_*.cpp"))
    return _build(ROOT / "build" / "native", [], [*tests, DIGESTS])


@pytest.fixture(scope="session")
def aarch64_build() -> Path:
    """The ops and the core library for aarch64, linked into a program that an emulator runs."""
    for tool in (AARCH64_COMPILER, AARCH64_EMULATOR):
        if shutil.which(tool) is None:
            if REQUIRE_AARCH64 in os.environ:
                pytest.fail(f"{tool} is not on the PATH")
            pytest.skip(f"{tool} is not on the PATH")
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    options += [f"-DCMAKE_CXX_COMPILER={AARCH64_COMPILER}", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    return _build(ROOT / "build" / "aarch64", options, [DIGESTS])
