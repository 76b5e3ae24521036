"""The programs of this room: the kernels' tests, plain and sanitized, and one for every seeded bug."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .host_build import BUILD, ROOT, build, digest
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


def mutant(mutation: Mutation, *, nice: bool = False) -> Path:
    """The test's program with the bug, under ThreadSanitizer."""
    source = CUDA / mutation.file
    text = source.read_text()
    assert text.count(mutation.old) == 1, (
        f"{mutation.name}: {mutation.file} holds it {text.count(mutation.old)} times"
    )
    folder = BUILD / "mutants" / digest(sorted(CUDA.iterdir()), [mutation.name, mutation.old, mutation.new])
    sources = folder / "csrc" / "cuda"
    if not sources.exists():
        copied = folder / "copied"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(CUDA, copied)
        (copied / mutation.file).write_text(text.replace(mutation.old, mutation.new))
        sources.parent.mkdir(exist_ok=True)
        copied.rename(sources)
    return build(mutation.test, sanitizer="thread", csrc=folder / "csrc", into=folder, nice=nice)


def make_in_background() -> ThreadPoolExecutor:
    """Compiles all of them, one after another and behind everything else that runs.

    A test that needs one awaits it, or makes it: what goes wrong is told there.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="cuda-host-build")
    for test in (*KERNELS, "test_launchers", "test_exchange_buffer"):
        pool.submit(build, test, nice=True)
    for test in (*KERNELS, "test_exchange_buffer"):
        for sanitizer in SANITIZERS:
            pool.submit(build, test, sanitizer=sanitizer, nice=True)
    for mutation in MUTATIONS:
        pool.submit(mutant, mutation, nice=True)
    return pool
