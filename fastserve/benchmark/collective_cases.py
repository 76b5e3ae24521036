"""What the ranks of a group do together, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import distributed

from fastserve import ops
from fastserve.distributed.group import Group
from fastserve.ops.packed_weight import WeightType

OURS = "fastserve"
Contestants = dict[str, Callable[[], object]]  # ours first, the baseline last

ROW_FLOATS = 1024  # of the matrix that a size is reduced as
SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)
SYMMETRIC_BYTES = 2 * SIZES[-1]
MATMULS: tuple[tuple[str, int, int, WeightType], ...] = (  # model and layer, N, K of all ranks together
    ("SmolLM2 o", 576, 576, "q4m"),
    ("SmolLM2 down", 576, 1536, "q4m"),
    ("8B down", 4096, 14336, "bf16"),
)
MATMUL_ROWS = (1, 32, 512)


class CollectiveCase(Protocol):
    """A case is the same on every rank, which all build their own part of it."""

    @property
    def op(self) -> str: ...
    @property
    def shape(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def num_bytes(self) -> int | None: ...  # that a rank contributes; None: not what bounds the case

    def contestants(self, group: Group) -> Contestants:
        """Collective: checks that the ranks do sum, and returns calls of the same op."""


@dataclass(frozen=True, slots=True)
class AllReduce:
    """An fp32 sum in place: the public call on a tensor, the native one below it, and gloo through torch."""

    num_bytes: int
    op: str = "all_reduce"
    dtype: str = "f32"

    @property
    def shape(self) -> str:
        return f"{self.num_bytes >> 10} KB"

    def contestants(self, group: Group) -> Contestants:
        shape = (max(self.num_bytes // 4 // ROW_FLOATS, 1), ROW_FLOATS)
        ours, native, theirs = (torch.full(shape, group.rank + 1.0) for _ in range(3))
        address = native.data_ptr()

        def exchange(memory: torch.Tensor = native) -> None:  # which must outlive the call
            group.exchange.all_reduce(address, *shape)

        calls: Contestants = {
            OURS: partial(group.all_reduce, ours),
            "exchange": exchange,
            "gloo": partial(distributed.all_reduce, theirs),
        }
        expected = torch.full(shape, group.size * (group.size + 1) / 2)
        for name, tensor in zip(calls, (ours, native, theirs), strict=True):
            calls[name]()
            assert torch.equal(tensor, expected), f"{name} did not sum"
            tensor.zero_()  # so that sums of sums stay finite
        return calls


@dataclass(frozen=True, slots=True)
class MatmulAllReduce:
    """A row-parallel matmul: fused with the all-reduce of its parts, and one after the other."""

    layer: str
    n: int
    k: int  # of all ranks together
    dtype: WeightType
    rows: int
    op: str = "matmul_all_reduce"
    num_bytes: int | None = None

    @property
    def shape(self) -> str:
        return f"{self.layer} M={self.rows} N={self.n} K={self.k}"

    def contestants(self, group: Group) -> Contestants:
        k = self.k // group.size
        packed = ops.pack(torch.randn(self.n, k), self.dtype)
        x = torch.randn(self.rows, k)

        def halves() -> torch.Tensor:
            y = ops.matmul(x, packed)
            ops.all_reduce(y, group)
            return y

        assert torch.equal(ops.matmul_all_reduce(x, packed, group), halves()), "fused and in halves differ"
        return {OURS: partial(ops.matmul_all_reduce, x, packed, group), "matmul, then all_reduce": halves}


def _name(case: CollectiveCase) -> str:
    return f"{case.op}-{case.dtype}-{case.shape.replace(' ', '_').replace('=', '')}"


_ALL: tuple[CollectiveCase, ...] = (
    *(AllReduce(size) for size in SIZES),
    *(MatmulAllReduce(*matmul, rows) for matmul in MATMULS for rows in MATMUL_ROWS),
)
CASES = {_name(case): case for case in _ALL}
