"""Compiles kernels and their tests for the host, with g++ and the headers of a CUDA toolkit."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda_host"
STANDARD = (
    "-std=c++20",
    "-Wall",
    "-Wextra",
    "-Werror=return-type",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",
)
SANITIZED = (
    "-DFASTSERVE_QUICK",
    "-Og",
    "-fno-omit-frame-pointer",
    "-g1",
)  # compiling takes longer than running
OPTIMISED = {"test_launchers": "-Og", "test_exchange_buffer": "-Og"}  # they hold every kernel, and run few


@cache
def toolkit() -> Path:
    """Where the CUDA toolkit lies. Skips the test if there is none; fails where FASTSERVE_REQUIRE_NVCC is set."""
    if (nvcc := shutil.which("nvcc")) is None:
        if "FASTSERVE_REQUIRE_NVCC" in os.environ:
            pytest.fail("nvcc is not on the PATH")
        pytest.skip("nvcc, whose headers the kernels need, is not on the PATH")
    told = subprocess.run([nvcc, "--dryrun", "none.cu"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"^#\$ TOP=(.+)$", told, re.MULTILINE)
    assert found is not None, told
    return Path(found[1]).resolve()


def build(test: str, *, sanitizer: str = "", csrc: Path = ROOT / "csrc", into: Path = BUILD) -> Path:
    """The program of tests/cuda_host/<test>.cpp, with the kernels of `csrc`.

    sanitizer: as for -fsanitize=; the emulator itself is never instrumented.
    """
    headers = sorted(HERE.glob("*.h"))
    cuda = ["-isystem", str(toolkit() / "include")]
    emulator = [
        _object(HERE / name, [f"-I{HERE}", *cuda, "-O2"], headers, BUILD)
        for name in ("emulator.cpp", "fiber.cpp", "runtime_host.cpp")
    ]
    sanitize = [f"-fsanitize={sanitizer}", *SANITIZED] if sanitizer else [OPTIMISED.get(test, "-O2")]
    includes = [f"-I{csrc}", f"-I{ROOT / 'tests' / 'csrc'}", f"-I{HERE}"]
    options = ["-DFASTSERVE_CUDA_HOST", *sanitize, *cuda]
    system = _precompiled(HERE / "system_headers.h", options)
    options += [*includes, "-include", str(system), "-Werror=invalid-pch"]
    inputs = [*headers, *sorted((csrc / "cuda").iterdir()), *sorted(csrc.glob("ring/shared_region.*"))]
    program = _object(HERE / f"{test}.cpp", options, inputs, into)
    link = ["g++", *sanitize, str(program), *map(str, emulator), "-pthread"]
    return _made(program.with_suffix(""), link)


def _precompiled(header: Path, options: list[str]) -> Path:
    """What to include instead of `header`: g++ finds the compiled one beside it, and nothing is there else."""
    name = BUILD / f"{header.stem}-{digest([header], options)}.h"
    _made(Path(f"{name}.gch"), ["g++", *STANDARD, *options, "-x", "c++-header", str(header)])
    return name


def _object(source: Path, options: list[str], included: list[Path], into: Path) -> Path:
    target = into / f"{source.stem}-{digest([source, *included], options)}.o"
    return _made(target, ["g++", *STANDARD, *options, "-c", str(source)])


def digest(inputs: Iterable[Path], options: list[str]) -> str:
    sha = hashlib.sha256(repr(options).encode())
    for path in inputs:
        sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def _made(target: Path, command: list[str]) -> Path:
    """What the command makes, unless it lies there already: its name holds a digest of all that it is made of."""
    with to_make(target) as is_missing:
        if is_missing:
            unfinished = target.with_name(f"{target.name}.unfinished")
            done = subprocess.run(
                [*command, "-o", str(unfinished)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-4000:]
            unfinished.rename(target)
    return target


@contextmanager
def to_make(target: Path) -> Iterator[bool]:
    """Whether it is still to be made; while it is, by this thread of this process alone."""
    if target.exists():
        yield False
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not target.exists()


def run(program: Path, *arguments: str, hang_s: int = 60) -> subprocess.CompletedProcess[str]:
    """Runs a test's program; the first race ends it, and a launch in which nothing moves for `hang_s`."""
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=os.environ | {"FASTSERVE_EMULATOR_HANG_S": str(hang_s), "TSAN_OPTIONS": "halt_on_error=1"},
    )
