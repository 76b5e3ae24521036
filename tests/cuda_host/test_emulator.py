"""The emulator that the CUDA kernels are tested with, tested itself: it runs what is right and sees what is wrong."""

from __future__ import annotations

import pytest

from .host_build import build, run


@pytest.mark.parametrize("sanitizer", ["", "thread", "address,undefined"])
def test_what_kernels_may_rely_on_works(sanitizer: str) -> None:
    done = run(build("test_emulator", sanitizer=sanitizer))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("divergence", "they have ended"),
        ("warp", "they have ended"),
        ("deadlock", "a deadlock: every thread waits for others of its block"),
        ("wave", "a hang: what the threads spin for does not come"),
        ("alignment", "an access of 16 bytes that is not aligned"),
    ],
)
def test_a_wrong_kernel_is_ended_with_a_message(way: str, message: str) -> None:
    done = run(build("test_emulator"), way, hang_s=2)
    assert done.returncode != 0
    assert "kernel: block " in done.stderr
    assert message in done.stderr


def test_threads_of_a_block_that_race_are_seen() -> None:
    done = run(build("test_emulator", sanitizer="thread"), "race")
    assert done.returncode != 0
    assert "data race" in done.stderr
