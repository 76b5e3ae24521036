"""One call of an op on operands of a device: what the tests of the GPU backends and their benchmarks are made of.

A call names no implementation: `apply` takes fastserve.ops or fastserve.ops.reference, any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastserve.ops import FileRows, KvCache, KvIndex, PackedWeight, pack, registry, weight_rows
from fastserve.ops.backend import Backend, lays_rows
from fastserve.ops.file_rows import FileType, row_bytes
from fastserve.ops.matmul import Epilogue
from fastserve.ops.packed_weight import WeightType

EPS = 1e-5
GPU_BACKENDS: tuple[Backend, ...] = ("triton", "cuda")
ROPE_BASE = 500_000.0
Apply = Callable[[Any], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Call:
    """`varied` may take any other values of its kind between two applications; `mutated` are updated by each."""

    op: str
    operands: Mapping[str, Tensor]
    apply: Apply
    varied: str
    mutated: tuple[str, ...] = ()
    weight: PackedWeight | None = None  # of matmuls


def gpu_backends(op: str, weight_type: str | None = None) -> list[Backend]:
    """Those that run such a call on a GPU. CUDA C++ multiplies by plain weights of 16 bits alone."""
    implemented = next(row.backends for row in registry.table() if row.name == op)
    multiplies = op != "matmul" or weight_type in ("bf16", "f16")
    return [name for name in GPU_BACKENDS if name in implemented and (name != "cuda" or multiplies)]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the operands of a call lie, the type of its activations, and where their values come from."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator = field(repr=False)

    @classmethod
    def on(cls, device: str | torch.device, dtype: torch.dtype, seed: int = 20241) -> Setting:
        device = torch.device(device)
        return cls(device, dtype, torch.Generator(device).manual_seed(seed))

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.generator, device=self.device)
        return values.to(self.dtype if dtype is None else dtype)

    def integers(self, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.device, dtype=dtype)

    def int32(self, *values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    @property
    def plain_type(self) -> WeightType:
        """A weight of the activations' own type."""
        types: dict[torch.dtype, WeightType] = {dtype: type for type, dtype in weight_rows.PLAIN.items()}  # type: ignore[misc]
        return types[self.dtype]

    def weight(self, type: WeightType, n: int, k: int) -> PackedWeight:
        """Codes of a quantised one on a GPU are random: what a quantiser makes of a weight is not of interest."""
        if not lays_rows(self.device):
            return pack(self.randn(n, k) / k**0.5, type)
        data = weight_rows.empty(type, n, k, self.device)
        if type in weight_rows.PLAIN:
            weight_rows.parts(data, type, n, k).values.copy_(self.randn(n, k) / k**0.5)
            return PackedWeight(data, type, n, k)
        codes = self.integers(256, n, k, dtype=torch.int16) - 128
        if type != "q8":
            codes &= 15
        largest = 128 if type == "q8" else 8
        scales = (
            (1 + self.randn(n, k // weight_rows.QUANT_BLOCK, dtype=torch.float32).abs()) / largest / k**0.5
        )
        minima = -8 * scales if type == "q4m" else None
        weight_rows.fill_quantised(data, type, codes, scales, minima)
        return PackedWeight(data, type, n, k)


def embed(setting: Setting, *, rows: int, d: int, vocabulary: int) -> Call:
    token_ids, table = setting.integers(vocabulary, rows), setting.randn(vocabulary, d)
    operands = {"token_ids": token_ids, "table": table}
    file_type: FileType = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[setting.dtype]  # type: ignore[assignment]
    file_rows = FileRows(table.view(torch.uint8), file_type, d, setting.dtype)
    return Call("embed", operands, lambda ops: (ops.embed(token_ids, file_rows),), "token_ids")


def embed_quantised(setting: Setting, file_type: FileType, *, rows: int, d: int, vocabulary: int) -> Call:
    """Rows as they lie in a GGUF file; blocks of 32 begin with their scale and, in Q4_1, their minimum, in fp16."""
    blocks = setting.integers(256, vocabulary, d // 32, row_bytes(file_type, 32), dtype=torch.uint8)
    num_halves = 2 if file_type == "Q4_1" else 1
    halves = setting.randn(vocabulary, d // 32, num_halves, dtype=torch.float16) / 16
    blocks[..., : 2 * num_halves] = halves.view(torch.uint8)
    table = FileRows(blocks.flatten(1), file_type, d, setting.dtype)
    token_ids = setting.integers(vocabulary, rows)
    operands = {"token_ids": token_ids, "table": table.data}
    return Call("embed", operands, lambda ops: (ops.embed(token_ids, table),), "token_ids")


def rms_norm(setting: Setting, *, rows: int, d: int) -> Call:
    x, weight = setting.randn(rows, d), setting.randn(d, dtype=torch.float32)
    return Call("rms_norm", {"x": x, "weight": weight}, lambda ops: (ops.rms_norm(x, weight, EPS),), "x")


def add_rms_norm(setting: Setting, *, rows: int, d: int) -> Call:
    x, residual, weight = (
        setting.randn(rows, d),
        setting.randn(rows, d),
        setting.randn(d, dtype=torch.float32),
    )
    return Call(
        "add_rms_norm",
        {"x": x, "residual": residual, "weight": weight},
        lambda ops: (ops.add_rms_norm(x, residual, weight, EPS),),
        "x",
        ("residual",),
    )


def silu_mul(setting: Setting, *, rows: int, f: int) -> Call:
    gate_up = setting.randn(rows, 2 * f)
    return Call("silu_mul", {"gate_up": gate_up}, lambda ops: (ops.silu_mul(gate_up),), "gate_up")


def select_rows(setting: Setting, *, rows: int, samples: int, d: int) -> Call:
    x, sample_rows = setting.randn(rows, d), setting.integers(rows, samples)
    operands = {"x": x, "sample_rows": sample_rows}
    return Call("select_rows", operands, lambda ops: (ops.select_rows(x, sample_rows),), "x")


def rotary(setting: Setting, *, rows: int, num_heads: int, num_kv_heads: int, head_dim: int) -> Call:
    q, k = setting.randn(rows, num_heads * head_dim), setting.randn(rows, num_kv_heads * head_dim)
    positions = setting.integers(100_000, rows)
    pairs = torch.arange(head_dim // 2, dtype=torch.float32, device=setting.device)
    inv_freq = ROPE_BASE ** -(pairs / (head_dim // 2))

    def apply(ops: Any) -> tuple[Tensor, ...]:
        ops.rotary(q, k, positions, inv_freq, head_dim=head_dim)
        return ()

    operands = {"q": q, "k": k, "positions": positions, "inv_freq": inv_freq}
    return Call("rotary", operands, apply, "positions", ("q", "k"))


def store_kv(k: Tensor, v: Tensor, cache: KvCache, index: KvIndex) -> Call:
    def apply(ops: Any) -> tuple[Tensor, ...]:
        ops.store_kv(k, v, cache, index)
        return ()

    operands = {"k": k, "v": v, "k_cache": cache.k, "v_cache": cache.v, "positions": index.positions}
    operands |= {"row_slot": index.row_slot, "tables": index.tables}
    return Call("store_kv", operands, apply, "v", ("k_cache", "v_cache"))


def paged_attention(
    q: Tensor, cache: KvCache, index: KvIndex, kv_of_head: Tensor, *, window: int = 0
) -> Call:
    scale = cache.v.shape[3] ** -0.5
    operands = {"q": q, "k_cache": cache.k, "v_cache": cache.v, "kv_of_head": kv_of_head}
    operands |= {"positions": index.positions, "tables": index.tables}
    options = {"scale": scale, "window": window, "max_group": int(kv_of_head.bincount().max())}
    return Call(
        "paged_attention",
        operands,
        lambda ops: (ops.paged_attention(q, cache, index, kv_of_head, **options),),
        "q",
    )


def matmul(
    setting: Setting, type: WeightType, *, rows: int, n: int, k: int, epilogue: Epilogue = "none"
) -> Call:
    """With a bias where the epilogue has one and is not trivial."""
    x, w = setting.randn(rows, k), setting.weight(type, n, k)
    bias = None if epilogue in ("none", "silu_mul") else setting.randn(n, dtype=torch.float32)
    return Call(
        "matmul",
        {"x": x, "w": w.data},
        lambda ops: (ops.matmul(x, w, bias=bias, epilogue=epilogue),),
        "x",
        weight=w,
    )


def sample(setting: Setting, *, rows: int, vocabulary: int, filters: Mapping[str, float]) -> Call:
    """Row 0 is greedy where there are several."""
    logits = 3 * setting.randn(rows, vocabulary)
    temperature = torch.full((rows,), 0.8, device=setting.device)
    temperature[: min(1, rows - 1)] = 0.0
    seed = torch.arange(rows, device=setting.device)
    output_idx = setting.integers(1000, rows)
    options = {
        name: torch.full(
            (rows,), value, dtype=torch.int32 if name == "top_k" else torch.float32, device=setting.device
        )
        for name, value in filters.items()
    }
    operands = {
        "logits": logits,
        "temperature": temperature,
        "seed": seed,
        "output_idx": output_idx,
        **options,
    }
    return Call(
        "sample",
        operands,
        lambda ops: tuple(ops.sample(logits, temperature, seed, output_idx, **options)),
        "logits",
    )


def swap(setting: Setting, *, num_blocks: int, block_elements: int, to_host: bool) -> Call:
    """Every second block, in reverse order; the host's side is pinned where the other is a GPU's."""
    on_device = setting.randn(num_blocks, block_elements)
    on_host = torch.zeros(
        num_blocks, block_elements, dtype=setting.dtype, pin_memory=setting.device.type == "cuda"
    )
    source, target = (on_device, on_host) if to_host else (on_host, on_device)
    if not to_host:
        on_host.copy_(setting.randn(num_blocks, block_elements))
    source_blocks = torch.arange(0, num_blocks, 2, dtype=torch.int32, device=setting.device)
    target_blocks = source_blocks.flip(0).contiguous()

    def apply(ops: Any) -> tuple[Tensor, ...]:
        ops.swap(source, target, source_blocks, target_blocks)
        return ()

    operands = {
        "source": source,
        "target": target,
        "source_blocks": source_blocks,
        "target_blocks": target_blocks,
    }
    return Call("swap", operands, apply, "source", ("target",))
