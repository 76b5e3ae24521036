"""The process-wide team behind the eager ops."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastserve.ops
from fastserve import _C


def test_calls_from_many_threads_take_turns(generator: torch.Generator) -> None:
    x = torch.randn(16, 4096, generator=generator)
    alone = fastserve.ops.silu_mul(x)
    with ThreadPoolExecutor(8) as pool:
        outs = list(pool.map(lambda _: fastserve.ops.silu_mul(x), range(64)))
    assert all(torch.equal(out, alone) for out in outs)


def test_a_team_has_a_thread_per_core_of_the_affinity_mask() -> None:
    assert _C.ops.num_threads() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("num_threads", [0, -1, 5000])
def test_an_impossible_number_of_threads_is_refused(num_threads: int) -> None:
    with pytest.raises(ValueError, match="num_threads must be in"):
        _C.ops.set_num_threads(num_threads)


def test_an_unknown_isa_is_refused() -> None:
    with pytest.raises(RuntimeError, match="mmx: unknown; built here: "):
        _C.ops.use_isa("mmx")


def test_the_isa_in_use_is_reported(isa: str) -> None:
    assert _C.isa() == isa


def test_a_forked_child_gets_a_team_of_its_own() -> None:
    x = torch.randn(4, 512)
    alone = fastserve.ops.silu_mul(x)
    address, out = x.data_ptr(), torch.zeros(4, 256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # "multi-threaded": what this test is about
        child = os.fork()
    if child == 0:
        _C.ops.silu_mul(address, 512, 4, 256, out.data_ptr(), 256)
        os._exit(0 if torch.equal(out, alone) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
