"""The CUDA kernels on emulated devices: right in every order of threads, free of races; and the tests see bugs."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .host_build import ROOT, build, run
from .mutations import MUTATIONS, Mutation

KERNELS = (
    "test_add_rms_norm",
    "test_all_reduce",
    "test_all_reduce_add_rms_norm",
    "test_matmul",
    "test_matmul_all_reduce",
)
SEEDS = range(1, 6)


@pytest.mark.parametrize("test", KERNELS)
def test_kernels_equal_the_reference_in_every_order_of_threads(test: str) -> None:
    program = build(test)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for seed, done in zip(SEEDS, pool.map(lambda seed: run(program, str(seed)), SEEDS), strict=True):
            assert done.returncode == 0, f"seed {seed}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_launchers_choose_what_gives_the_right_result() -> None:
    done = run(build("test_launchers"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("sanitizer", ["", "thread", "address,undefined"])
def test_whoever_raises_a_groups_epoch_ends_the_kernels_that_wait(sanitizer: str) -> None:
    done = run(build("test_exchange_buffer", sanitizer=sanitizer), hang_s=10)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[:4000]


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
@pytest.mark.parametrize("test", KERNELS)
def test_kernels_are_clean_under_sanitizers(test: str, sanitizer: str) -> None:
    done = run(build(test, sanitizer=sanitizer))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[:4000]
    assert "Sanitizer" not in done.stderr
    assert "runtime error" not in done.stderr


def mutant(mutation: Mutation, folder: Path) -> Path:
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc" / "cuda", csrc / "cuda")
    source = csrc / "cuda" / mutation.file
    text = source.read_text()
    assert text.count(mutation.old) == 1, (
        f"{mutation.name}: {mutation.file} holds it {text.count(mutation.old)} times"
    )
    source.write_text(text.replace(mutation.old, mutation.new))
    return build(mutation.test, sanitizer="thread", csrc=csrc, into=folder)


def survives(mutation: Mutation, folder: Path) -> bool:
    return run(mutant(mutation, folder), hang_s=5).returncode == 0


@pytest.mark.timeout(900)
def test_every_seeded_bug_is_found(tmp_path: Path) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = [tmp_path / str(i) for i in range(len(MUTATIONS))]
        survived = [
            m.name
            for m, alive in zip(MUTATIONS, pool.map(survives, MUTATIONS, folders), strict=True)
            if alive
        ]
    assert survived == []
