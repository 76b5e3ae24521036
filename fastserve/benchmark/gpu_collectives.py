"""Collectives of a process per GPU, timed on every rank at once; NCCL, and cuBLAS before it, are the peers.

Run by torchrun. A time is the slowest rank's: all ranks take their turns in the same order, and begin each together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from fastserve.benchmark import collective_calls
from fastserve.benchmark.gpu_lines import Device, Failure, GpuLine, Measured, copies, ours
from fastserve.benchmark.gpu_peers import MakePeer, cublas
from fastserve.benchmark.gpu_theory import BF16, DECODE_ROWS, MODEL, PREFILL_ROWS, Work, works
from fastserve.benchmark.gpu_timer import ROUNDS, Clock, Contestant, Run, measure
from fastserve.benchmark.op_calls import EPS, Call, Setting
from fastserve.ops.group import Group

PEERS: dict[str, str] = {
    "all_reduce": "NCCL",
    "all_reduce_add_rms_norm": "NCCL, then torch",
    "matmul_all_reduce": "cuBLAS, then NCCL",
    "matmul_all_reduce_add_rms_norm": "cuBLAS, then NCCL, then torch",
}
MAX_COPIES = (
    4  # of a sum: an exchange does not get faster by what the L2 holds, a graph of one would be all start
)


@dataclass(frozen=True, slots=True)
class CollectiveCase:
    """The same on every rank, which builds its own operands."""

    work: Work
    build: Callable[[Setting, Group], Call]


def collective_cases(num_ranks: int) -> list[CollectiveCase]:
    theory = {(work.op, work.shape): work for work in works(num_ranks)}
    d, k = MODEL.hidden, MODEL.intermediate // num_ranks
    found: list[CollectiveCase] = []
    for rows in (DECODE_ROWS, PREFILL_ROWS):
        sums, products = f"{rows} x {d}, {num_ranks} ranks", f"{rows} x {d} x {k}, {num_ranks} ranks"
        fused = theory["matmul_all_reduce", products]
        norm_bytes = (
            3 * BF16 * rows * d
        )  # the residual read and written, and what is normalised written beside it
        behind = replace(
            fused, op="matmul_all_reduce_add_rms_norm", memory_bytes=fused.memory_bytes + norm_bytes
        )
        found += [
            CollectiveCase(theory["all_reduce", sums], _of_rows(collective_calls.all_reduce, rows)),
            CollectiveCase(
                theory["all_reduce_add_rms_norm", sums],
                _of_rows(collective_calls.all_reduce_add_rms_norm, rows),
            ),
            CollectiveCase(fused, _of_product(collective_calls.matmul_all_reduce, rows, k)),
            CollectiveCase(behind, _of_product(collective_calls.matmul_all_reduce_add_rms_norm, rows, k)),
        ]
    return found


def _of_rows(make: Callable[..., Call], rows: int) -> Callable[[Setting, Group], Call]:
    return lambda setting, group: make(setting, group, rows=rows, d=MODEL.hidden)


def _of_product(make: Callable[..., Call], rows: int, k: int) -> Callable[[Setting, Group], Call]:
    return lambda setting, group: make(setting, group, "bf16", rows=rows, n=MODEL.hidden, k=k)


@dataclass(frozen=True, slots=True)
class SlowestRank:
    """A clock whose seconds are those of the rank that took longest."""

    clock: Clock
    device: torch.device

    def recorded(self, run: Run) -> Run:
        return self.clock.recorded(run)

    def seconds(self, run: Run) -> float:
        dist.barrier()
        return _largest(self.clock.seconds(run), self.device)


def _largest(value: float, device: torch.device) -> float:
    """Over the ranks."""
    values = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return float(values)


def peer(call: Call) -> Run:
    """What torch does for the same call."""
    summed = call.op.removeprefix("matmul_")
    multiply: MakePeer = cublas if summed != call.op else lambda call: lambda: call.operands["x"]
    product = multiply(call)

    def run() -> Tensor:
        total = product()
        assert isinstance(total, Tensor)
        dist.all_reduce(total)
        if summed == "all_reduce":
            return total
        residual, weight = call.operands["residual"], call.operands["weight"].to(total.dtype)
        return functional.rms_norm(residual.add_(total), (total.shape[1],), weight, EPS)

    return run


def run_cases(
    group: Group, device: Device, clock: Clock, *, where: torch.device, deadline: float, rounds: int = ROUNDS
) -> Iterator[GpuLine | Failure]:
    """The same lines on every rank; no case is begun after the deadline (of time.monotonic) of any of them."""
    slowest = SlowestRank(clock, where)
    for case in collective_cases(group.size):
        if _largest(float(time.monotonic() > deadline), where):
            yield Failure("collectives", case.work.op, case.work.shape, "all", "not reached in time")
            continue
        setting = Setting.on(where, torch.bfloat16, seed=group.rank)
        calls = copies(partial(case.build, setting, group), case.work, device.l2_bytes)[:MAX_COPIES]
        own = ours(case.work.op, calls, "bf16")
        contestants = {**own, PEERS[case.work.op]: Contestant([peer(call) for call in calls])}
        buckets, errors = measure(contestants, slowest, rounds=rounds)
        yield from Measured("collectives", case.work, "bf16", tuple(own), buckets, errors).lines(device)
