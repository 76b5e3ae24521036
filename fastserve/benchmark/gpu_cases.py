"""The calls whose times on a GPU are held against gpu_theory: one rank of one here, collectives in gpu_collectives.

The shapes are those of the theory, so a case names the work it does there and takes its sizes from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from fastserve.benchmark import op_calls
from fastserve.benchmark.gpu_theory import CONTEXT, DECODE_ROWS, MODEL, PREFILL_ROWS, Work, works
from fastserve.benchmark.op_calls import Call, Setting
from fastserve.benchmark.op_cases import kv_index
from fastserve.ops import KvCache, KvIndex
from fastserve.ops.kv_cache import BLOCK_SIZE
from fastserve.ops.packed_weight import WeightType

MATMUL_TYPES: tuple[WeightType, ...] = ("bf16", "q8", "q4")
BLOCK_ELEMENTS = BLOCK_SIZE * MODEL.kv_heads * MODEL.head_dim  # of the keys of a KV block of one layer
SWAP_BYTES = 64_000_000
FILTERS: Mapping[str, Mapping[str, float]] = {"": {}, ", top_k 50": {"top_k": 50}}

Build = Callable[[Setting], Call]


@dataclass(frozen=True, slots=True)
class GpuCase:
    """What is built does `work`; operands that are built again are others."""

    work: Work
    build: Build
    weight_type: WeightType | None = None

    @property
    def dtype(self) -> str:
        return self.weight_type or "bf16"


def cases() -> list[GpuCase]:
    """What weighs most in a step comes first: time may run out."""
    theory = {(work.op, work.shape): work for work in works()}

    def case(
        op: str, shape: str, build: Build, *, suffix: str = "", weight_type: WeightType | None = None
    ) -> GpuCase:
        work = theory[op, shape]
        return GpuCase(replace(work, shape=work.shape + suffix), build, weight_type)

    return [*_matmuls(case), *_attention(case), *_row_ops(case), *_rest(case)]


def _matmuls(case: Callable[..., GpuCase]) -> Iterator[GpuCase]:
    n, k = 2 * MODEL.intermediate, MODEL.hidden
    for rows in (DECODE_ROWS, PREFILL_ROWS):
        for type in MATMUL_TYPES:
            build = partial(op_calls.matmul, type=type, rows=rows, n=n, k=k)
            yield case("matmul", f"{rows} x {n} x {k}, {type}", build, weight_type=type)


def _attention(case: Callable[..., GpuCase]) -> Iterator[GpuCase]:
    decode = partial(attention_call, num_requests=DECODE_ROWS, context=CONTEXT, decode=True)
    yield case("paged_attention", f"decode, {DECODE_ROWS} rows, {CONTEXT} keys", decode)
    prefill = partial(attention_call, num_requests=1, context=PREFILL_ROWS, decode=False)
    yield case("paged_attention", f"prefill, {PREFILL_ROWS} rows of one sequence", prefill)


def _row_ops(case: Callable[..., GpuCase]) -> Iterator[GpuCase]:
    d, f = MODEL.hidden, MODEL.intermediate
    for rows in (DECODE_ROWS, PREFILL_ROWS):
        embed = partial(op_calls.embed, rows=rows, d=d, vocabulary=MODEL.vocabulary)
        yield case("embed", f"{rows} x {d}", embed)
        yield case("rms_norm", f"{rows} x {d}", partial(op_calls.rms_norm, rows=rows, d=d))
        yield case("add_rms_norm", f"{rows} x {d}", partial(op_calls.add_rms_norm, rows=rows, d=d))
        heads, kv_heads = MODEL.heads, MODEL.kv_heads
        rotary = partial(
            op_calls.rotary, rows=rows, num_heads=heads, num_kv_heads=kv_heads, head_dim=MODEL.head_dim
        )
        yield case("rotary", f"{rows} rows", rotary)
        yield case("store_kv", f"{rows} rows", partial(store_call, rows=rows))
        yield case("silu_mul", f"{rows} x {f}", partial(op_calls.silu_mul, rows=rows, f=f))
        select = partial(op_calls.select_rows, rows=rows, samples=16, d=d)
        yield case("select_rows", f"16 of {rows}", select)


def _rest(case: Callable[..., GpuCase]) -> Iterator[GpuCase]:
    for suffix, filters in FILTERS.items():
        build = partial(op_calls.sample, rows=DECODE_ROWS, vocabulary=MODEL.vocabulary, filters=filters)
        yield case("sample", f"{DECODE_ROWS} rows of {MODEL.vocabulary}", build, suffix=suffix)
    yield case("swap", "64 MB to the host", partial(swap_call, num_bytes=SWAP_BYTES))


def attention_call(setting: Setting, *, num_requests: int, context: int, decode: bool) -> Call:
    """The last token of every request, or all tokens of each."""
    index, cache = _kv(setting, num_requests, context, decode=decode)
    q = setting.randn(len(index.positions), MODEL.heads * MODEL.head_dim)
    head = torch.arange(MODEL.heads, dtype=torch.int32, device=setting.device)
    return op_calls.paged_attention(q, cache, index, head * MODEL.kv_heads // MODEL.heads)


def store_call(setting: Setting, *, rows: int) -> Call:
    """A row of each of so many sequences, or one sequence where these are a prompt's."""
    decode = rows == DECODE_ROWS
    sequences, context = (rows, CONTEXT) if decode else (1, rows)
    index, cache = _kv(setting, sequences, context, decode=decode)
    k, v = (setting.randn(rows, MODEL.kv_heads * MODEL.head_dim) for _ in range(2))
    return op_calls.store_kv(k, v, cache, index)


def swap_call(setting: Setting, *, num_bytes: int) -> Call:
    """Of the keys of a layer's KV blocks, every second one moves."""
    num_blocks = 2 * round(num_bytes / setting.dtype.itemsize / BLOCK_ELEMENTS)
    return op_calls.swap(setting, num_blocks=num_blocks, block_elements=BLOCK_ELEMENTS, to_host=True)


def _kv(setting: Setting, num_requests: int, context: int, *, decode: bool) -> tuple[KvIndex, KvCache]:
    found = kv_index(num_requests, context, decode=decode)
    parts = (found.row_slot, found.positions, found.tables)
    index = KvIndex(*(part.to(setting.device) for part in parts))
    num_blocks = num_requests * -(-context // BLOCK_SIZE)
    cache = KvCache.empty(num_blocks, MODEL.kv_heads, MODEL.head_dim, setting.dtype, setting.device)
    for blocks in (cache.k, cache.v):
        blocks.normal_(generator=setting.generator)
    return index, cache
