"""Times the calls of a case, by each backend of ours and by its peers, and says how far from the roofs they stay."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

import fastserve.ops
from fastserve.benchmark.gpu_cases import GpuCase
from fastserve.benchmark.gpu_peers import peers_of
from fastserve.benchmark.gpu_theory import Gpu, Work, gpu_named
from fastserve.benchmark.gpu_timer import MIN_COPIES, ROUNDS, Clock, Contestant, measure, num_copies
from fastserve.benchmark.machine import Machine
from fastserve.benchmark.op_calls import Call, Setting, gpu_backends
from fastserve.benchmark.report import Line
from fastserve.benchmark.turns import Buckets
from fastserve.ops.backend import VARIABLE, Backend

MAX_OPERAND_BYTES = 4 << 30  # of a contestant's copies together: an embedding table has a gigabyte

Section = Literal["ops", "collectives", "model"]


@dataclass(frozen=True, slots=True)
class GpuLine:
    """theory_s: what the call takes at least by the maker's figures; None: the device is not among them.
    tokens_per_s: of whole engines."""

    section: Section
    line: Line
    theory_s: float | None
    tokens_per_s: float | None = None

    def as_dict(self) -> dict[str, object]:
        own = {"section": self.section, "theory_s": self.theory_s, "tokens_per_s": self.tokens_per_s}
        return {"kind": "line", **own, **self.line.as_dict()}


@dataclass(frozen=True, slots=True)
class Failure:
    """A contestant that could not run, or a case that was not reached."""

    section: Section
    op: str
    shape: str
    backend: str
    error: str

    def as_dict(self) -> dict[str, object]:
        return {"kind": "failure", **dataclasses.asdict(self)}


@dataclass(frozen=True, slots=True)
class Device:
    """What lines are taken on and held against."""

    name: str
    num_gpus: int
    architecture: str
    l2_bytes: int
    measured: Gpu
    commit: str

    @property
    def machine(self) -> Machine:
        return Machine(self.name, self.num_gpus, self.architecture, self.commit)

    @property
    def theory(self) -> Gpu | None:
        return gpu_named(self.name)

    def as_dict(self) -> dict[str, object]:
        theory = self.theory and dataclasses.asdict(self.theory)
        return {"kind": "device", **dataclasses.asdict(self), "theory": theory}


@contextmanager
def forced(backend: Backend) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def ours(op: str, calls: Sequence[Call], weight_type: str | None) -> dict[str, Contestant]:
    return {
        backend: Contestant(
            [partial(call.apply, fastserve.ops) for call in calls], context=partial(forced, backend)
        )
        for backend in gpu_backends(op, weight_type)
    }


def copies(build: Callable[[], Call], work: Work, l2_bytes: int) -> list[Call]:
    """On sets of operands that are large enough together."""
    first = build()
    operand_bytes = sum(operand.nbytes for operand in first.operands.values())
    count = num_copies(work.memory_bytes or work.host_bytes, l2_bytes)
    count = max(MIN_COPIES, min(count, MAX_OPERAND_BYTES // operand_bytes))
    return [first, *(build() for _ in range(count - 1))]


def run_case(
    case: GpuCase, device: Device, clock: Clock, *, where: torch.device, rounds: int = ROUNDS
) -> list[GpuLine | Failure]:
    setting = Setting.on(where, torch.bfloat16)
    calls = copies(lambda: case.build(setting), case.work, device.l2_bytes)
    own = ours(case.work.op, calls, case.weight_type)
    buckets, errors = measure({**own, **peers_of(calls)}, clock, rounds=rounds)
    return Measured("ops", case.work, case.dtype, tuple(own), buckets, errors).lines(device)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of one case; `own` names the contestants that are ours.

    num_tokens: that a call of a whole engine brings; 0: it is no engine's.
    """

    section: Section
    work: Work
    dtype: str
    own: tuple[str, ...]
    buckets: Buckets
    errors: Mapping[str, str]
    num_tokens: int = 0

    def lines(self, device: Device) -> list[GpuLine | Failure]:
        """One for each of ours and each peer, without a baseline where no peer could run."""
        measured = self.buckets.contestants
        peers: list[str | None] = [name for name in measured if name not in self.own]
        theory_s = None if device.theory is None else self.work.roof_us(device.theory) / 1e6
        lines: list[GpuLine | Failure] = [
            GpuLine(self.section, self._line(name, peer, device), theory_s, self._tokens_per_s(name))
            for name in self.own
            if name in measured
            for peer in peers or [None]
        ]
        work = self.work
        return lines + [
            Failure(self.section, work.op, work.shape, name, error) for name, error in self.errors.items()
        ]

    def _tokens_per_s(self, name: str) -> float | None:
        return self.num_tokens / self.buckets.summary("single", name).median if self.num_tokens else None

    def _line(self, name: str, peer: str | None, device: Device) -> Line:
        work, seconds = self.work, self.buckets.summary("single", name)
        num_bytes = work.link_bytes or work.host_bytes or work.memory_bytes
        return Line(
            machine=device.machine,
            state="single",
            op=work.op,
            shape=work.shape,
            dtype=self.dtype,
            backend=name,
            seconds=seconds,
            gbps=num_bytes / seconds.median / 1e9,
            gops=work.flops / seconds.median / 1e9 if work.flops else None,
            roof_share=work.roof_us(device.measured) / 1e6 / seconds.median,
            baseline=peer,
            ratio=None if peer is None else self.buckets.ratio("single", peer, name),
        )
