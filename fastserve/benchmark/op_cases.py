"""The calls that bench/ops.py times: shapes of real models, and what torch offers for the same work.

Weights and caches come in copies that together hold WORKING_SET_BYTES, and calls walk over them: in a model, too,
a layer's weights were last read a whole step ago. Norms work on what the op before them has just written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fastserve import ops
from fastserve.benchmark.roofs import WORKING_SET_BYTES, Work
from fastserve.benchmark.torch_matmul import FP32_PEERS, MatmulPeer, torch_matmul
from fastserve.ops.kv_cache import BLOCK_SIZE
from fastserve.ops.packed_weight import WeightType

MAX_COPIES = 1024
ARITHMETIC: dict[str, Literal["f32", "bf16", "int8"]] = {
    "f32": "f32",
    "f16": "f32",
    "bf16": "bf16",
}  # else int8


@dataclass(frozen=True, slots=True)
class Case:
    """One op at one shape: two calls that do the same, and what they must do at least."""

    op: str
    shape: str
    dtype: str
    ours: Callable[[], object]
    baseline_name: str
    baseline: Callable[[], object]
    work: Work
    in_cache: bool = False  # its operands are: no roof of memory applies


@dataclass(frozen=True, slots=True)
class Heads:
    model: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


SMOLLM2 = Heads("SmolLM2-135M", 9, 3, 64)
EIGHT_B = Heads("8B", 32, 8, 128)

MATMUL_KINDS: tuple[tuple[WeightType, int], ...] = (  # (type, activation_bits)
    ("f32", 14),
    ("bf16", 14),
    ("q8", 14),
    ("q8", 8),
    ("q4", 14),
    ("q4", 8),
    ("q4m", 14),
    ("q4m", 8),
)
MATMUL_ROWS = (1, 8, 32, 128, 512)
MATMUL_SHAPES = {  # (N, K)
    "SmolLM2 qkv": (960, 576),
    "SmolLM2 o": (576, 576),
    "SmolLM2 gate_up": (3072, 576),
    "SmolLM2 down": (576, 1536),
    "SmolLM2 logits": (49152, 576),
    "8B o": (4096, 4096),
}


@dataclass(frozen=True, slots=True)
class MatmulWeights:
    """Copies of one matrix in one type, ours and a peer's."""

    n: int
    k: int
    type: WeightType
    packed: list[ops.PackedWeight]
    baseline_name: str
    torch_calls: list[Callable[[Tensor], object]]

    @classmethod
    def make(
        cls, shape: tuple[int, int], weight_type: WeightType, peer: MatmulPeer = torch_matmul
    ) -> MatmulWeights:
        n, k = shape
        weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)) / k**0.5
        first = ops.pack(weight, weight_type)
        packed = [first] + [
            ops.PackedWeight(first.data.clone(), weight_type, n, k)
            for _ in range(num_copies(first.data.numel()) - 1)
        ]
        name, torch_calls = peer(weight, weight_type, num_copies)
        return cls(n, k, weight_type, packed, name, torch_calls)


def num_copies(num_bytes: int) -> int:
    """Of operands of that size, to fill the working set."""
    return max(2, min(MAX_COPIES, -(-WORKING_SET_BYTES // num_bytes)))


def matmul_case(weights: MatmulWeights, rows: int, activation_bits: int) -> Case:
    x = torch.randn(rows, weights.k)
    x_torch = x if weights.baseline_name in FP32_PEERS else x.bfloat16()
    ours, theirs = cycle(weights.packed), cycle(weights.torch_calls)
    num_bytes = weights.packed[0].data.numel()
    return Case(
        op="matmul",
        shape=f"M={rows} N={weights.n} K={weights.k}",
        dtype=weights.type + (", 8 bits" if activation_bits == 8 else ""),
        ours=lambda: ops.matmul(x, next(ours), activation_bits=activation_bits),
        baseline_name=weights.baseline_name,
        baseline=lambda: next(theirs)(x_torch),
        work=Work(num_bytes, 2.0 * rows * weights.n * weights.k, ARITHMETIC.get(weights.type, "int8")),
    )


def attention_case(
    heads: Heads, dtype: torch.dtype, *, num_requests: int, context: int, decode: bool
) -> Case:
    """decode: the last token of every request; else all tokens of each, causally."""
    columns = heads.num_kv_heads * heads.head_dim
    kv_bytes = 2 * num_requests * context * columns * dtype.itemsize
    copies = min(num_copies(kv_bytes), 32)
    blocks = -(-context // BLOCK_SIZE)
    caches = [
        ops.KvCache.empty(num_requests * blocks, heads.num_kv_heads, heads.head_dim, dtype)
        for _ in range(copies)
    ]
    index = kv_index(num_requests, context, decode=decode)
    q = torch.randn(len(index.positions), heads.num_heads * heads.head_dim)
    kv_of_head = torch.arange(heads.num_heads, dtype=torch.int32) * heads.num_kv_heads // heads.num_heads
    scale = heads.head_dim**-0.5
    walk = cycle(caches)

    length = 1 if decode else context
    q_torch = q.view(num_requests, length, heads.num_heads, heads.head_dim).transpose(1, 2).to(dtype)
    kv_shape = (num_requests, heads.num_kv_heads, context, heads.head_dim)
    torch_walk: Iterator[tuple[Tensor, Tensor]] = cycle(
        [(torch.zeros(kv_shape, dtype=dtype), torch.zeros(kv_shape, dtype=dtype)) for _ in range(copies)]
    )

    def theirs() -> object:
        k, v = next(torch_walk)
        return functional.scaled_dot_product_attention(
            q_torch, k, v, is_causal=not decode, scale=scale, enable_gqa=True
        )

    keys_seen = context if decode else context * (context + 1) // 2
    return Case(
        op="paged_attention",
        shape=f"{'decode' if decode else 'prefill'} S={num_requests} context={context} "
        f"H={heads.num_heads} K={heads.num_kv_heads} E={heads.head_dim}",
        dtype="bf16" if dtype == torch.bfloat16 else "f32",
        ours=lambda: ops.paged_attention(q, next(walk), index, kv_of_head, scale=scale),
        baseline_name="torch sdpa, contiguous KV",
        baseline=theirs,
        work=Work(kv_bytes, 4.0 * num_requests * keys_seen * heads.num_heads * heads.head_dim, "f32"),
    )


def kv_index(num_requests: int, context: int, *, decode: bool) -> ops.KvIndex:
    """Blocks of the requests lie interleaved, as they come to lie when requests grow side by side."""
    blocks = -(-context // BLOCK_SIZE)
    slots = torch.arange(num_requests, dtype=torch.int32)
    tables = torch.arange(num_requests * blocks, dtype=torch.int32).view(blocks, num_requests).T.contiguous()
    if decode:
        return ops.KvIndex(slots, torch.full((num_requests,), context - 1, dtype=torch.int32), tables)
    positions = torch.arange(context, dtype=torch.int32).repeat(num_requests)
    return ops.KvIndex(slots.repeat_interleave(context), positions, tables)


def norm_case(name: str, rows: int, d: int) -> Case:
    """name: rms_norm, add_rms_norm or silu_mul (then d is its output's width)."""
    x = torch.randn(rows, 2 * d if name == "silu_mul" else d)
    residual, weight = torch.zeros(rows, d), torch.ones(d)
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object], int]] = {
        "rms_norm": (
            lambda: ops.rms_norm(x, weight, 1e-5),
            lambda: functional.rms_norm(x, (d,), weight, 1e-5),
            2,
        ),
        "add_rms_norm": (
            lambda: ops.add_rms_norm(x, residual, weight, 1e-5),
            lambda: functional.rms_norm(residual.add_(x), (d,), weight, 1e-5),
            4,
        ),
        "silu_mul": (lambda: ops.silu_mul(x), lambda: functional.silu(x[:, :d]) * x[:, d:], 3),
    }
    ours, baseline, num_passes = pairs[name]
    work = Work(4.0 * rows * d * num_passes, 4.0 * rows * d, "f32")
    return Case(name, f"T={rows} D={d}", "f32", ours, "torch", baseline, work, in_cache=True)


NORMS: Sequence[str] = ("rms_norm", "add_rms_norm", "silu_mul")
