"""The programs of this room: the kernels' tests, plain and sanitized, and one for every seeded bug.

Run as a module, it makes all of them, until nobody holds the other end of its standard input.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

from .host_build import BUILD, ROOT, build, digest, to_make
from .mutations import MUTATIONS, Mutation

KERNELS = (
    "test_add_rms_norm",
    "test_all_reduce",
    "test_all_reduce_add_rms_norm",
    "test_matmul",
    "test_matmul_all_reduce",
)
SANITIZERS = ("thread", "address,undefined")
CUDA = ROOT / "csrc" / "cuda"


def mutant(mutation: Mutation) -> Path:
    """The test's program with the bug, under ThreadSanitizer."""
    source = CUDA / mutation.file
    text = source.read_text()
    assert text.count(mutation.old) == 1, (
        f"{mutation.name}: {mutation.file} holds it {text.count(mutation.old)} times"
    )
    folder = BUILD / "mutants" / digest(sorted(CUDA.iterdir()), [mutation.name, mutation.old, mutation.new])
    sources = folder / "csrc" / "cuda"
    with to_make(sources) as is_missing:
        if is_missing:
            copied = folder / "copied"
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(CUDA, copied)
            (copied / mutation.file).write_text(text.replace(mutation.old, mutation.new))
            copied.rename(sources)
    return build(mutation.test, sanitizer="thread", csrc=folder / "csrc", into=folder)


def make_all() -> None:
    """One after another. Stops at what cannot be made: the test that needs it tells why."""
    for test in (*KERNELS, "test_launchers", "test_exchange_buffer"):
        build(test)
    for test in (*KERNELS, "test_exchange_buffer"):
        for sanitizer in SANITIZERS:
            build(test, sanitizer=sanitizer)
    for mutation in MUTATIONS:
        mutant(mutation)


def end_with_whoever_started_us() -> None:
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)  # with the compiler that runs


def main() -> None:
    os.nice(19)  # behind everything else that runs
    threading.Thread(target=end_with_whoever_started_us, daemon=True).start()
    make_all()


if __name__ == "__main__":
    main()
