"""The CUDA kernels on emulated devices: right in every order of threads, free of races; and the tests see bugs."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from .host_build import build, run
from .mutations import MUTATIONS, Mutation
from .programs import KERNELS, SANITIZERS, mutant

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


@pytest.mark.parametrize("sanitizer", ["", *SANITIZERS])
def test_whoever_raises_a_groups_epoch_ends_the_kernels_that_wait(sanitizer: str) -> None:
    done = run(build("test_exchange_buffer", sanitizer=sanitizer), hang_s=10)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[:4000]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("test", KERNELS)
def test_kernels_are_clean_under_sanitizers(test: str, sanitizer: str) -> None:
    done = run(build(test, sanitizer=sanitizer))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[:4000]
    assert "Sanitizer" not in done.stderr
    assert "runtime error" not in done.stderr


def survives(mutation: Mutation) -> bool:
    """A race shows in most runs, not in all of them."""
    program = mutant(mutation)
    alive = all(run(program, str(seed), hang_s=5).returncode == 0 for seed in SEEDS)
    shutil.rmtree(program.parent)  # 7 MB that nobody needs again
    return alive


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("no_builder")
def test_every_seeded_bug_is_found() -> None:
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:  # some of them hang
        survived = [
            mutation.name
            for mutation, alive in zip(MUTATIONS, pool.map(survives, MUTATIONS), strict=True)
            if alive
        ]
    assert survived == []
