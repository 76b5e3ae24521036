"""The kernels of paged_attention in the interpreter.

tl.dot on bf16 is silently wrong there: fp16 stands for 16-bit types. It multiplies with BLAS, whose sums depend on
the shapes; `ascending_dot` adds the summed dimension in ascending order, as the GPU's instructions do, so that bits
can be compared between kernels with tiles of different shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from fastserve.kernels import paged_attention as module
from fastserve.kernels.paged_attention import (
    Split,
    choose_attention,
    choose_shape,
    find_lone_rows,
    paged_attention,
)
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from fastserve.ops import KvCache, KvIndex, reference
from fastserve.ops.kv_cache import BLOCK_SIZE

SCALE = 0.2
# fp32: scores up to 10 have errors of 1e-6 in either order of summation, which are relative errors of the weights.
# fp16: a weight is rounded for the product, and the output: 2^-11 each, of values up to 4.
TOLERANCE = {torch.float32: {"rtol": 1e-6, "atol": 3e-6}, torch.float16: {"rtol": 2**-11, "atol": 2**-10}}


@pytest.fixture(autouse=True)
def ascending_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    def dot(self: object, a: TensorHandle, b: TensorHandle, d: TensorHandle, *_: object) -> TensorHandle:
        left, right, total = a.data.astype("float32"), b.data.astype("float32"), d.data.copy()
        for k in range(left.shape[1]):
            total += left[:, k, None] * right[k]
        return TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20248)


@dataclass(frozen=True, slots=True)
class Case:
    """All tokens of some slots, in order; k and v [B, K, P, E] hold NaN where nothing was stored."""

    q: Tensor
    k: Tensor
    v: Tensor
    index: KvIndex
    kv_of_head: Tensor

    def attend(self, rows: slice | list[int] = slice(None), *, window: int = 0, **options: int) -> Tensor:
        """q and out are parts of wider rows."""
        q = torch.nn.functional.pad(self.q, (3, 5))[rows][:, 3:-5]
        out = torch.full((len(q), q.shape[1] + 2), torch.nan, dtype=q.dtype)[:, :-2]
        row_slot, positions = self.index.row_slot[rows], self.index.positions[rows]
        paged_attention(
            q, self.k, self.v, row_slot, positions, self.index.tables, self.kv_of_head, out,
            scale=SCALE, window=window, **options,
        )  # fmt: skip
        return out

    def expected(self, rows: slice | list[int] = slice(None), *, window: int = 0) -> Tensor:
        """The reference, on fp32 copies and the CPU's layout of keys, rounded once."""
        cache = KvCache(self.k.float().transpose(2, 3).contiguous(), self.v.float())
        index = replace(self.index, row_slot=self.index.row_slot[rows], positions=self.index.positions[rows])
        q = self.q[rows].float()
        out = reference.paged_attention(q, cache, index, self.kv_of_head, scale=SCALE, window=window)
        return out.to(self.q.dtype)


def make_case(
    generator: torch.Generator,
    lengths: tuple[int, ...],
    *,
    kv_of_head: tuple[int, ...] = (0, 0, 0, 1),
    head_dim: int = 16,
    dtype: torch.dtype = torch.float16,
) -> Case:
    """Blocks are scattered over the cache; some slots may be empty."""
    num_kv_heads, max_blocks = max(kv_of_head) + 1, -(-max(lengths) // BLOCK_SIZE)
    num_blocks = len(lengths) * max_blocks + 1
    tables = torch.randperm(num_blocks, generator=generator)[:-1].reshape(len(lengths), max_blocks)
    slots = torch.tensor([slot for slot, length in enumerate(lengths) for _ in range(length)])
    positions = torch.tensor([position for length in lengths for position in range(length)])
    blocks = tables[slots, positions // BLOCK_SIZE]
    shape = (num_blocks, num_kv_heads, BLOCK_SIZE, head_dim)
    k, v = (torch.full(shape, torch.nan, dtype=dtype) for _ in range(2))
    for cache in (k, v):
        stored = torch.randn(len(slots), num_kv_heads, head_dim, generator=generator)
        cache[blocks, :, positions % BLOCK_SIZE] = stored.to(dtype)
    q = torch.randn(len(slots), len(kv_of_head) * head_dim, generator=generator).to(dtype)
    index = KvIndex(slots.int(), positions.int(), tables.int())
    return Case(q, k, v, index, torch.tensor(kv_of_head, dtype=torch.int32))


@pytest.mark.parametrize("window", [0, 1, 260])
def test_equals_the_reference(generator: torch.Generator, window: int) -> None:
    case = make_case(generator, (264, 1, 20))
    out = case.attend(window=window, max_group=3)
    torch.testing.assert_close(out, case.expected(window=window), **TOLERANCE[torch.float16])


@pytest.mark.parametrize("window", [0, 20])
def test_equals_the_reference_in_fp32(generator: torch.Generator, window: int) -> None:
    case = make_case(generator, (5, 1, 36), dtype=torch.float32)
    out = case.attend(window=window, max_group=3)
    torch.testing.assert_close(out, case.expected(window=window), **TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [*product((1, 80, 128, 256), (torch.float16,)), *product((18, 64, 96, 256), (torch.float32,))],
    ids=str,
)
def test_any_head_dim_equals_the_reference(
    generator: torch.Generator, head_dim: int, dtype: torch.dtype
) -> None:
    case = make_case(generator, (33, 270), kv_of_head=(0, 0), head_dim=head_dim, dtype=dtype)
    rows = [0, 32, 33 + 269]
    torch.testing.assert_close(case.attend(rows), case.expected(rows), **TOLERANCE[dtype])


def test_tiles_of_wide_heads_equal_the_reference(generator: torch.Generator) -> None:
    case = make_case(generator, (20,), kv_of_head=(0,), head_dim=200)
    torch.testing.assert_close(case.attend(), case.expected(), **TOLERANCE[torch.float16])


@pytest.mark.parametrize(("architecture", "window"), [(80, 0), (90, 260), (100, 20)])
def test_a_row_has_the_same_bits_in_every_company(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator, architecture: int, window: int
) -> None:
    case = make_case(generator, (530, 18), kv_of_head=(0, 0, 0))
    case = replace(case, q=case.q.float())  # and so the output, which hides nothing then
    options = {"window": window, "architecture": architecture}
    begin = 495
    whole = case.attend(slice(begin, None), **options)
    some = [begin, 511, 512, 529, 530, 540, 547]
    of_whole = [row - begin for row in some]
    assert torch.equal(case.attend(some, **options), whole[of_whole])  # as rows, partitions apart
    with monkeypatch.context() as patch:
        patch.setattr(module, "SCRATCH_BYTES", 0)  # a program merges the partitions itself
        assert torch.equal(case.attend([529], **options), whole[529 - begin :][:1])
    assert torch.equal(case.attend(slice(505, 520), **options), whole[505 - begin : 520 - begin])  # a chunk
    mixed = [547, *range(510, 522)]  # a decode before a chunk
    of_whole = [row - begin for row in mixed]
    assert torch.equal(case.attend(mixed, max_group=5, **options), whole[of_whole])


def test_slots_may_take_turns_within_a_tile(generator: torch.Generator) -> None:
    case = make_case(generator, (12, 3, 9, 1))
    shuffled = torch.randperm(len(case.q), generator=generator).tolist()
    assert torch.equal(case.attend(shuffled), case.attend()[shuffled])


@pytest.mark.parametrize("max_group", [None, 200])
def test_a_bound_that_is_too_large_changes_no_bit(generator: torch.Generator, max_group: int | None) -> None:
    case = make_case(generator, (10,), kv_of_head=(0,) * 5 + (2,) * 2)  # nobody reads KV head 1
    options = {} if max_group is None else {"max_group": max_group}
    assert torch.equal(case.attend(**options), case.attend(max_group=5))
    torch.testing.assert_close(case.attend(), case.expected(), **TOLERANCE[torch.float16])


def test_more_heads_than_a_program_holds_are_shared_out(generator: torch.Generator) -> None:
    case = make_case(generator, (9,), kv_of_head=(0,) * 130)
    torch.testing.assert_close(case.attend(), case.expected(), **TOLERANCE[torch.float16])
    torch.testing.assert_close(case.attend([4]), case.expected([4]), **TOLERANCE[torch.float16])


@pytest.mark.parametrize("num_rows", [1, 30])
def test_keys_before_the_window_are_not_read(generator: torch.Generator, num_rows: int) -> None:
    case = make_case(generator, (300,))
    rows, window = slice(300 - num_rows, 300), 20
    before = case.attend(rows, window=window)
    first = 300 - num_rows - window + 1
    for position in range(first):
        block, lane = int(case.index.tables[0, position // BLOCK_SIZE]), position % BLOCK_SIZE
        case.k[block, :, lane], case.v[block, :, lane] = torch.nan, torch.nan
    case.index.tables[0, : first // BLOCK_SIZE] = 1 << 30  # blocks given away
    assert torch.equal(case.attend(rows, window=window), before)


def test_lone_rows_are_those_without_a_neighbour_in_their_slot() -> None:
    row_slot = torch.tensor([3, 0, 0, 5, 1, 3, 4], dtype=torch.int32)
    lone = torch.full((7,), -7, dtype=torch.int32)
    find_lone_rows[(7,)](row_slot, lone, 7, SCAN=4)
    assert lone.tolist() == [-1, 4, -1, -1, 6, 3, -1]


def test_no_rows_launch_nothing(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    for kernel in ("find_lone_rows", "attend_rows", "attend_tiles", "merge_partitions"):
        monkeypatch.setattr(module, kernel, None)
    assert make_case(generator, (5,)).attend([]).shape == (0, 4 * 16)


def sizes(**changed: int) -> dict[str, int]:
    model = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "window": 0}
    return {**model, "num_rows": 1, "num_slots": 64, "max_keys": 8192, **changed}


@pytest.mark.parametrize(
    ("changed", "split"),
    [
        ({}, Split(tiled=False, num_partitions=32, num_splits=32)),
        ({"num_rows": 9}, Split(tiled=True, num_partitions=32, num_splits=8)),  # 64 slots x 8 KV heads
        ({"max_keys": 256}, Split(tiled=False, num_partitions=1, num_splits=1)),
        ({"window": 257}, Split(tiled=False, num_partitions=2, num_splits=2)),
        ({"window": 258}, Split(tiled=False, num_partitions=3, num_splits=3)),
        ({"window": 1 << 20}, Split(tiled=False, num_partitions=32, num_splits=32)),
        ({"num_rows": 9, "max_keys": 1 << 17}, Split(tiled=True, num_partitions=512, num_splits=1)),
    ],
    ids=str,
)
def test_the_choice_follows_from_sizes_alone(changed: dict[str, int], split: Split) -> None:
    assert choose_attention(**sizes(**changed)) == split


def shapes() -> Iterator[tuple[int, int, int]]:
    for architecture in (80, 90, 100):
        for head_dim in (16, 64, 80, 96, 128, 256):
            yield from ((architecture, head_dim, element_bytes) for element_bytes in (2, 4))


@pytest.mark.parametrize(("architecture", "head_dim", "element_bytes"), list(shapes()))
def test_rows_and_tiles_use_one_kind_of_product(architecture: int, head_dim: int, element_bytes: int) -> None:
    several = [
        choose_shape(head_dim=head_dim, element_bytes=element_bytes, group=group, architecture=architecture)
        for group in (1, 3, 8, 40, 71)
    ]
    assert len({shape.strip_levels for shape in several}) == 1
    if architecture == 80 or element_bytes == 4:
        return
    queries = {size for shape in several for size in (shape.row_queries, shape.tile_queries)}
    assert all(size % 64 == 0 for size in queries)
    assert architecture == 90 or queries == {64}
