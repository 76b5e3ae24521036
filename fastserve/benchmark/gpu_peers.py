"""What else does the work of a call on a GPU: the libraries that torch brings, on the same operands.

Quantised weights have no peer of their kind in torch: they are compared with cuBLAS on the same weight in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from fastserve.benchmark.gpu_timer import Contestant, Run
from fastserve.benchmark.op_calls import EPS, Call
from fastserve.ops import unpack
from fastserve.ops.kv_cache import BLOCK_SIZE

MakePeer = Callable[[Call], Run]


def peers_of(calls: Sequence[Call]) -> dict[str, Contestant]:
    """By name; the calls are of one op, on operands of their own."""
    return {
        name: Contestant([make(call) for call in calls], capturable=name not in EAGER)
        for name, make in PEERS[calls[0].op].items()
    }


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x.float(), (x.shape[1],), weight, EPS).to(x.dtype)


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    return _rms_norm(residual.add_(x), weight)


def _silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _rotary(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    angles = positions[:, None].float() * inv_freq
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    for x in (q, k):
        pairs = x.view(x.shape[0], -1, inv_freq.shape[0], 2).float()
        a, b = pairs.unbind(-1)
        x.copy_(torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).view(x.shape))
    return q


def _on(*names: str) -> Callable[[Callable[..., Tensor]], MakePeer]:
    """Of those operands of a call."""

    def peer(function: Callable[..., Tensor]) -> MakePeer:
        return lambda call: lambda: function(*(call.operands[name] for name in names))

    return peer


def cublas(call: Call) -> Run:
    assert call.weight is not None
    x = call.operands["x"]
    w = unpack(call.weight).to(x.dtype)
    return lambda: functional.linear(x, w)


def _sdpa(call: Call) -> Run:
    """On keys and values that lie contiguous; causal unless there is one row a sequence."""
    q, blocks, positions = (call.operands[name] for name in ("q", "k_cache", "positions"))
    num_requests, context = call.operands["tables"].shape[0], int(positions.max()) + 1
    _, num_kv_heads, _, head_dim = blocks.shape
    queries = q.view(num_requests, -1, q.shape[1] // head_dim, head_dim).transpose(1, 2)
    k, v = (
        torch.randn(num_requests, num_kv_heads, context, head_dim, dtype=q.dtype, device=q.device)
        for _ in range(2)
    )
    causal = queries.shape[2] > 1
    return lambda: functional.scaled_dot_product_attention(queries, k, v, is_causal=causal, enable_gqa=True)


def _index_put(call: Call) -> Run:
    k, v, k_cache, v_cache = (call.operands[name] for name in ("k", "v", "k_cache", "v_cache"))
    positions = call.operands["positions"].long()
    block = call.operands["tables"][call.operands["row_slot"].long(), positions // BLOCK_SIZE].long()
    lane = positions % BLOCK_SIZE
    heads = (k.shape[0], k_cache.shape[1], k_cache.shape[3])

    def store() -> None:
        k_cache[block, :, lane] = k.view(heads)
        v_cache[block, :, lane] = v.view(heads)

    return store


def _draw(call: Call) -> Run:
    """By softmax and multinomial; of the k likeliest where the call has a top_k, which is one for all rows."""
    logits = call.operands["logits"].float()
    top_k = int(call.operands["top_k"][0]) if "top_k" in call.operands else 0

    def draw() -> Tensor:
        if not top_k:
            return torch.multinomial((logits / 0.8).softmax(-1), 1)
        values, token_ids = logits.topk(top_k)
        return token_ids.gather(1, torch.multinomial((values / 0.8).softmax(-1), 1))

    return draw


def _copy(call: Call) -> Run:
    """As many bytes, which lie together."""
    num_moved = len(call.operands["source_blocks"])
    source, target = (call.operands[name][:num_moved] for name in ("source", "target"))
    return lambda: target.copy_(source, non_blocking=True)


def _eager_and_compiled(function: Callable[..., Tensor], *names: str) -> dict[str, MakePeer]:
    def compiled(call: Call) -> Run:  # torch.compile takes seconds to import
        return _on(*names)(_compiled(function))(call)

    return {"torch": _on(*names)(function), "torch.compile": compiled}


EAGER = ("torch multinomial",)  # waits for the GPU to say that probabilities are such
PEERS: dict[str, dict[str, MakePeer]] = {
    "embed": {"torch": _on("token_ids", "table")(functional.embedding)},
    "rms_norm": _eager_and_compiled(_rms_norm, "x", "weight"),
    "add_rms_norm": _eager_and_compiled(_add_rms_norm, "x", "residual", "weight"),
    "silu_mul": _eager_and_compiled(_silu_mul, "gate_up"),
    "rotary": _eager_and_compiled(_rotary, "q", "k", "positions", "inv_freq"),
    "store_kv": {"torch index_put": _index_put},
    "select_rows": {"torch": _on("x", "sample_rows")(lambda x, rows: x.index_select(0, rows))},
    "matmul": {"cuBLAS bf16": cublas},
    "paged_attention": {"torch sdpa, contiguous KV": _sdpa},
    "sample": {"torch multinomial": _draw},
    "swap": {"cudaMemcpyAsync": _copy},
}
