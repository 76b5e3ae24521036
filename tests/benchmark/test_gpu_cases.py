"""Every GPU kernel has its case, and a peer does the work that its call does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastserve.benchmark import gpu_command
from fastserve.benchmark.gpu_cases import cases
from fastserve.benchmark.gpu_collectives import collective_cases, run_cases
from fastserve.benchmark.gpu_lines import forced
from fastserve.benchmark.gpu_peers import PEERS, peers_of
from fastserve.benchmark.gpu_theory import RANKS, works
from fastserve.benchmark.op_calls import GPU_BACKENDS, Setting
from fastserve.ops import reference, registry
from fastserve.ops.backend import forced as forced_backend

from .fake_gpu import DEVICE, SWAP_BYTES, FakeClock, Lines

CPU = torch.device("cpu")


def test_every_kernel_and_every_line_of_the_theory_has_its_case() -> None:
    found = [case.work for case in (*cases(), *collective_cases(RANKS))]
    named = {work.op for work in found}
    assert named == {row.name for row in registry.table() if set(row.backends) & set(GPU_BACKENDS)}
    assert {(work.op, work.shape) for work in works()} <= {(work.op, work.shape) for work in found}


@pytest.mark.usefixtures("small_model")
@pytest.mark.parametrize("case", range(len(cases())))
def test_a_peer_does_the_work_of_its_call(case: int) -> None:
    """On keys and values of its own where it reads no blocks, and with random numbers of its own."""
    chosen = cases()[case]
    for name in PEERS[chosen.work.op]:
        call, twin = (chosen.build(Setting.on("cpu", torch.float32)) for _ in range(2))
        returned = call.apply(reference)
        (run,) = peers_of([twin])[name].calls
        theirs = run()
        if chosen.work.op == "sample":
            assert theirs.shape == (len(twin.operands["logits"]), 1)
        elif chosen.work.op == "paged_attention":
            assert theirs.numel() == returned[0].numel()
        elif chosen.work.op == "swap":
            assert theirs.nbytes == SWAP_BYTES
        else:
            for mine, other in zip(returned, [theirs] if returned else [], strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)
            for operand in call.mutated:  # a rotation's peer computes angles of up to 1e5 in fp32
                mine, other = call.operands[operand], twin.operands[operand]
                torch.testing.assert_close(mine, other, rtol=0, atol=3e-2)


@pytest.mark.usefixtures("small_model")
def test_every_case_is_measured_against_its_peers() -> None:
    file = Lines()
    gpu_command.run_ops(file, time.monotonic() + 100, DEVICE, FakeClock(), CPU, rounds=1)
    device, *lines = file.read_all()
    assert device["kind"] == "device"
    assert [line for line in lines if line["kind"] != "line"] == []
    wanted = [(case.work.op, case.work.shape, peer) for case in cases() for peer in PEERS[case.work.op]]
    assert [(line["op"], line["shape"], line["baseline"]) for line in lines] == wanted
    assert all(line["ratio"] == 1.0 and line["roof_share"] > 0 for line in lines)


@pytest.mark.usefixtures("small_model")
def test_what_is_not_reached_in_time_is_said() -> None:
    file = Lines()
    gpu_command.run_ops(file, time.monotonic() - 1, DEVICE, FakeClock(), CPU, rounds=1)
    _, *lines = file.read_all()
    assert {line["error"] for line in lines} == {"not reached in time"}
    assert len(lines) == len(cases())


@pytest.mark.usefixtures("small_model")
def test_a_case_that_cannot_be_built_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    run_case = gpu_command.run_case

    def run(case: Any, *args: Any, **options: Any) -> Any:
        if case.work.op == "embed":
            raise MemoryError("too large")
        return run_case(case, *args, **options)

    monkeypatch.setattr(gpu_command, "run_case", run)
    chosen = [case for case in cases() if case.work.op in ("embed", "rms_norm")]
    monkeypatch.setattr(gpu_command, "cases", lambda: chosen)
    file = Lines()
    gpu_command.run_ops(file, time.monotonic() + 100, DEVICE, FakeClock(), CPU, rounds=1)
    _, *lines = file.read_all()
    failures = [line for line in lines if line["kind"] == "failure"]
    assert {(line["op"], line["error"]) for line in failures} == {("embed", "MemoryError: too large")}
    assert len(lines) > len(failures)


@pytest.fixture
def lone_rank() -> Iterator[Any]:
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield SimpleNamespace(rank=0, size=1)
    dist.destroy_process_group()


@pytest.mark.usefixtures("small_model")
def test_collectives_are_measured_against_their_peers(lone_rank: Any) -> None:
    clock = FakeClock()
    lines = list(run_cases(lone_rank, DEVICE, clock, where=CPU, deadline=time.monotonic() + 100, rounds=3))
    assert [line.line.op for line in lines] == [case.work.op for case in collective_cases(1)]
    assert all(line.line.ratio == 1.0 for line in lines)
    late = list(run_cases(lone_rank, DEVICE, clock, where=CPU, deadline=time.monotonic() - 1))
    assert {line.error for line in late} == {"not reached in time"}


def test_a_backend_is_forced_for_as_long_as_its_calls_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTSERVE_BACKEND", raising=False)
    with forced("triton"):
        with forced("cuda"):
            assert forced_backend() == "cuda"
        assert forced_backend() == "triton"
    assert forced_backend() is None
