"""A steady decode step asks nothing of the allocator and takes no lock, on any thread of a device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NUM_STEPS = 100
# Of a thread, in a step: the engine sleeps until a result wakes it; a wait that spun and yielded in vain sleeps too.
# Yields to others on the same core are counted apart: a wait yields while it lasts.
MAX_SYSCALLS = 4

SCRIPT = """
import ctypes, json, os, sys
from fastserve import LLM, SamplingParams

library = ctypes.CDLL(sys.argv[1])

def counts():
    found, buffer = {}, (ctypes.c_int64 * 4)()
    for tid in map(int, os.listdir("/proc/self/task")):
        if tid != os.getpid():
            found[tid] = list(buffer) if library.counts_of(tid, buffer) else [0] * 4
    return found

with LLM(sys.argv[2], num_threads=int(sys.argv[3]), speculation="off", max_model_len=512) as llm:
    greedy = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
    before, tokens = None, 0
    for output in llm.stream("Steady as she goes", greedy):
        tokens = len(output.outputs[0].token_ids)
        if before is None and tokens >= 50:
            before, first = counts(), tokens
        if before is not None and tokens >= first + int(sys.argv[4]):
            break
    after = counts()
print(json.dumps([[b - a for a, b in zip(before[tid], after[tid])] for tid in before]))
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("counter") / "libcount_calls.so"
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-shared", "-fPIC", "-Wall", "-Werror"]
    subprocess.run([*command, str(HERE / "count_calls.cpp"), "-o", str(library), "-ldl"], check=True)
    return library


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_steady_step_allocates_nothing_and_takes_no_lock(
    num_threads: int, counter: Path, smollm2_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(counter), str(smollm2_path), str(num_threads), str(NUM_STEPS)],
        env={**os.environ, "LD_PRELOAD": str(counter)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    threads = json.loads(done.stdout)
    assert len(threads) >= num_threads
    print(f"allocations, locks, system calls, yields in {NUM_STEPS} steps, by thread: {threads}")
    for allocations, locks, syscalls, _ in threads:
        assert allocations == 0
        assert locks == 0
        assert syscalls <= MAX_SYSCALLS * NUM_STEPS
