"""Ranks are processes with cores of their own, and nothing of them is left behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastserve import LLM, SamplingParams
from fastserve.distributed.cores import usable_cores
from fastserve.errors import FastServeError, WeightFileError

LIMITS: dict[str, Any] = {"max_model_len": 256, "kv_cache_bytes": 32 << 20}
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def pids_of(llm: LLM) -> list[int]:
    return list(llm._engine.executor.pids)  # type: ignore[attr-defined]


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def cores_of_threads(pid: int) -> list[frozenset[int]]:
    """Of the threads that compute: those bound to one core. (Those that wait for the engine may run anywhere.)"""
    affinities = [frozenset(os.sched_getaffinity(int(thread))) for thread in os.listdir(f"/proc/{pid}/task")]
    return [affinity for affinity in affinities if len(affinity) == 1]


@pytest.fixture
def two_ranks(smollm2_path: Path) -> Iterator[LLM]:
    with LLM(str(smollm2_path), devices=2, **LIMITS) as llm:
        yield llm


def test_ranks_are_processes_started_by_exec(two_ranks: LLM) -> None:
    pids = pids_of(two_ranks)
    assert len(set(pids)) == 2
    for pid in pids:
        command = psutil.Process(pid).cmdline()
        assert "fastserve.distributed.rank" in command  # a fork would show this process's own command


@pytest.mark.skipif(len(usable_cores()) < 2, reason="needs two cores")
def test_ranks_compute_on_disjoint_cores(two_ranks: LLM) -> None:
    two_ranks.generate("one", GREEDY)  # all threads have started
    first, second = (frozenset().union(*cores_of_threads(pid)) for pid in pids_of(two_ranks))
    assert first
    assert second
    assert not first & second


def test_more_ranks_than_cores_share_them(smollm2_path: Path) -> None:
    with LLM(str(smollm2_path), devices=9, **LIMITS) as llm:
        assert len(llm.generate("one", GREEDY)[0].outputs[0].token_ids) == 4
        if 1 < len(usable_cores()) < 9:  # on a machine of one core every thread is bound to it
            assert all(cores_of_threads(pid) == [] for pid in pids_of(llm))


def test_close_leaves_no_process_no_descriptor_and_no_name(smollm2_path: Path) -> None:
    LLM(str(smollm2_path), devices=2, **LIMITS).close()  # what is opened once for good is open now
    gc.collect()
    before = psutil.Process().num_fds(), children(), sorted(os.listdir("/dev/shm"))

    llm = LLM(str(smollm2_path), devices=2, **LIMITS)
    pids = pids_of(llm)
    assert sorted(os.listdir("/dev/shm")) == before[2]  # shared memory has no name even while it is used
    llm.generate("one", GREEDY)
    llm.close()
    llm.close()  # again is harmless
    assert not any(psutil.pid_exists(pid) for pid in pids)
    del llm
    gc.collect()

    assert (psutil.Process().num_fds(), children(), sorted(os.listdir("/dev/shm"))) == before


def load_error(path: Path, devices: int) -> BaseException:
    """What loading raises; it must be one line and leave no rank."""
    before = children()
    with pytest.raises((FastServeError, ValueError)) as raised:
        LLM(str(path), devices=devices, **LIMITS)
    assert "\n" not in str(raised.value)
    assert children() == before
    return raised.value


def test_a_cut_file_is_refused(smollm2_path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with smollm2_path.open("rb") as whole:
        cut.write_bytes(whole.read(smollm2_path.stat().st_size // 2))
    error = load_error(cut, 2)
    assert isinstance(error, WeightFileError)
    assert str(cut) in str(error)


def test_what_a_rank_finds_wrong_is_told_by_its_type(smollm2_path: Path, tmp_path: Path) -> None:
    # The engine reads the header alone, so only a rank sees that a tensor of the last layer has another name.
    damaged = tmp_path / "damaged.gguf"
    data = smollm2_path.read_bytes()
    assert data.count(b"blk.29.ffn_down.weight") == 1
    damaged.write_bytes(data.replace(b"blk.29.ffn_down.weight", b"blk.29.ffn_gone.weight"))
    error = load_error(damaged, 2)
    assert isinstance(error, WeightFileError)
    assert "blk.29.ffn_down.weight is missing" in str(error)


def test_more_devices_than_heads_are_refused(smollm2_path: Path) -> None:
    error = load_error(smollm2_path, 10)
    assert isinstance(error, ValueError)
    assert "devices must be in [1, 9]" in str(error)
