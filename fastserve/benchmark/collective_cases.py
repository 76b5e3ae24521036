"""What the ranks of a group do together, and what it is compared with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import distributed

from fastserve import _C, ops
from fastserve.benchmark import ddp_case
from fastserve.benchmark.collective_lines import Described
from fastserve.benchmark.contestants import OURS, Contestants, Repeated
from fastserve.benchmark.ddp_case import DdpStep
from fastserve.distributed.group import Group
from fastserve.ops.packed_weight import WeightType

SIZES = tuple(1024 << 2 * step for step in range(9))  # 1 KB to 64 MB
SYMMETRIC_BYTES = 32 << 20
HEAP_BYTES = SIZES[-1] + 4096
TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
MATMULS: tuple[tuple[str, int, int, WeightType], ...] = (  # model and layer, N, K of all ranks together
    ("SmolLM2 o", 576, 576, "q4m"),
    ("SmolLM2 down", 576, 1536, "q4m"),
    ("8B down", 4096, 14336, "bf16"),
)
MATMUL_ROWS = (1, 32, 512)


class CollectiveCase(Described, Protocol):
    """A case is the same on every rank, which all build their own part of it."""

    def contestants(self, group: Group) -> Contestants:
        """Collective: checks that the ranks do sum, and returns calls of the same op."""


@dataclass(frozen=True, slots=True)
class AllReduce:
    """A sum in place, of a tensor of the caller's own memory: ours, and gloo through torch."""

    num_bytes: int
    dtype: str
    op: str = "all_reduce"

    @property
    def shape(self) -> str:
        return f"{self.num_bytes >> 10} KB"

    def contestants(self, group: Group) -> Contestants:
        dtype = TORCH_DTYPES[self.dtype]
        count = self.num_bytes // dtype.itemsize
        ours, theirs = (torch.full((count,), group.rank + 1.0, dtype=dtype) for _ in range(2))
        type_idx = _C.DATA_TYPES.index(self.dtype)
        by_address = (ours.data_ptr(), count, type_idx, _C.REDUCE_OPS.index("sum"), False)
        calls: Contestants = {
            OURS: partial(group.all_reduce, ours),
            "fastserve by address": partial(group.peers.all_reduce, *by_address),
            "gloo": partial(distributed.all_reduce, theirs),
        }
        expected = torch.full((count,), group.size * (group.size + 1) / 2, dtype=dtype)
        for name, tensor in ((OURS, ours), ("gloo", theirs)):
            calls[name]()
            assert torch.equal(tensor, expected), f"{name} did not sum"
            tensor.zero_()  # so that sums of sums stay finite
        return calls


@dataclass(frozen=True, slots=True)
class SymmetricAllReduce:
    """A buffer that two ranks see, filled and summed: ours, the limit of any such sum, and one of the caller's own.

    Written anew each time, as in use: else whoever wrote the sum finds it in his own cache.
    """

    num_bytes: int
    dtype: str = "f32"
    op: str = "symmetric"

    @property
    def shape(self) -> str:
        return f"{self.num_bytes >> 10} KB"

    def contestants(self, group: Group) -> Contestants:
        count, peers = self.num_bytes // 4, group.peers
        symmetric, private = _shared_of(group).buffer[:count], torch.zeros(count)
        own, callers = symmetric.data_ptr(), private.data_ptr()
        symmetric.fill_(group.rank + 1.0)
        group.all_reduce(symmetric)
        assert torch.all(symmetric == group.size * (group.size + 1) / 2), "symmetric buffers did not sum"
        symmetric.zero_()

        def fill_alone(calls: int, memory: torch.Tensor = private) -> None:  # which must outlive the call
            _C.fill(callers, count, calls)

        contestants: Contestants = {
            OURS: Repeated(lambda calls: peers.fill_and_sum(own, count, calls)),
            "filled alone": Repeated(fill_alone),
            "private": Repeated(lambda calls: peers.fill_and_sum(callers, count, calls)),
        }
        if group.size == 2:
            naked = _shared_of(group).naked
            peer = own + peers.heap_address_of(1 - group.rank) - peers.heap_address
            contestants["limit"] = Repeated(lambda calls: naked.fill_and_sum(own, peer, count, calls))
        return contestants


class _Shared:
    """A group's symmetric memory, for one case after the other."""

    def __init__(self, group: Group) -> None:
        peers = group.peers
        self.buffer = group.empty(SIZES[-1] // 4, dtype=torch.float32)
        flag = group.empty(_C.FLAG_BYTES, dtype=torch.uint8)
        flag.zero_()
        group.barrier()
        offset = flag.data_ptr() - peers.heap_address
        peer = peers.heap_address_of((group.rank + 1) % group.size) + offset
        self.naked = _C.NakedAllReduce(flag.data_ptr(), peer, group.rank)


_shared: WeakKeyDictionary[Group, _Shared] = WeakKeyDictionary()


def _shared_of(group: Group) -> _Shared:
    if group not in _shared:
        _shared[group] = _Shared(group)
    return _shared[group]


@dataclass(frozen=True, slots=True)
class Exchange:
    """The fp32 matrices of a model's layers: the sum that the fused ops end in, and the general one."""

    rows: int
    columns: int
    dtype: str = "f32"
    op: str = "exchange"

    @property
    def num_bytes(self) -> int:
        return 4 * self.rows * self.columns

    @property
    def shape(self) -> str:
        return f"{self.rows} x {self.columns}"

    def contestants(self, group: Group) -> Contestants:
        native, general = (torch.zeros(self.rows, self.columns) for _ in range(2))
        address = native.data_ptr()

        def exchange(memory: torch.Tensor = native) -> None:  # which must outlive the call
            group.exchange.all_reduce(address, self.rows, self.columns)

        return {OURS: exchange, "all_reduce": partial(group.all_reduce, general)}


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

        def product_of_all() -> None:
            ops.matmul(x, packed)
            group.barrier()

        assert torch.equal(ops.matmul_all_reduce(x, packed, group), halves()), "fused and in halves differ"
        return {
            OURS: partial(ops.matmul_all_reduce, x, packed, group),
            "matmul, then barrier": product_of_all,  # what communication comes on top of
            "matmul, then all_reduce": halves,
        }


@dataclass(frozen=True, slots=True)
class MatmulAllReduceNorm(MatmulAllReduce):
    """The same with a residual addition and a norm behind it: fused, and two ops in turn."""

    op: str = "matmul_all_reduce_add_rms_norm"

    def contestants(self, group: Group) -> Contestants:
        k = self.k // group.size
        packed = ops.pack(torch.randn(self.n, k), self.dtype)
        x, residual, weight = torch.randn(self.rows, k), torch.zeros(self.rows, self.n), torch.ones(self.n)

        def in_turn() -> torch.Tensor:
            return ops.add_rms_norm(ops.matmul_all_reduce(x, packed, group), residual, weight, 1e-5)

        def fused() -> torch.Tensor:
            return ops.matmul_all_reduce_add_rms_norm(x, packed, group, residual, weight, 1e-5)

        first = fused().clone()
        residual.zero_()
        assert torch.equal(first, in_turn()), "fused and in turn differ"
        return {OURS: fused, "matmul_all_reduce, then add_rms_norm": in_turn}


def _name(case: CollectiveCase) -> str:
    shape = re.sub(r"[^\w.]+", "_", case.shape.replace("=", ""))
    return f"{case.op}-{case.dtype}-{shape}"


_ALL: tuple[CollectiveCase, ...] = (
    *(AllReduce(size, dtype) for dtype in TORCH_DTYPES for size in SIZES),
    *(SymmetricAllReduce(size) for size in SIZES),
    *(Exchange(rows, columns) for columns in (576, 4096) for rows in MATMUL_ROWS),
    *(DdpStep(rows) for rows in ddp_case.ROWS),
    *(MatmulAllReduce(*matmul, rows) for matmul in MATMULS for rows in MATMUL_ROWS),
    *(MatmulAllReduceNorm(*matmul, rows) for matmul in MATMULS[:2] for rows in MATMUL_ROWS),
)
CASES = {_name(case): case for case in _ALL}
