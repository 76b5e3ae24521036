"""The calls that the tests of this room make: every op of the table, and each form of it that has a kernel of its own.

Sizes are odd where a kernel allows it, and small: the interpreter runs some of them in ordinary test runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from fastserve.benchmark import collective_calls, op_calls
from fastserve.benchmark.op_calls import Call, Setting, gpu_backends
from fastserve.ops import reference
from fastserve.ops.backend import Backend
from fastserve.ops.packed_weight import WeightType
from tests.ops.kv_case import KvCase, make_case, moved

# A product of 96 or 160 in fp32, or a rounding of operands of about 1 to 16 bits and another of the result.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = tuple(TOLERANCE)
QUANTISED: tuple[WeightType, ...] = ("q8", "q4", "q4m")


def kv_case(setting: Setting, lengths: tuple[int, ...]) -> KvCase:
    generator = torch.Generator().manual_seed(20241)
    case = make_case(generator, lengths, num_heads=5, num_kv_heads=2, head_dim=32)
    return moved(case, setting.device, setting.dtype)


def store_kv(setting: Setting) -> Call:
    case = kv_case(setting, (5, 33))
    for blocks in (case.cache.k, case.cache.v):
        blocks.zero_()  # what is compared must be equal to itself
    return op_calls.store_kv(case.k, case.v, case.cache, case.index)


def stored_case(setting: Setting, lengths: tuple[int, ...]) -> KvCase:
    case = kv_case(setting, lengths)
    reference.store_kv(case.k, case.v, case.cache, case.index)
    return case


def attention(setting: Setting, lengths: tuple[int, ...], *, window: int = 0) -> Call:
    case = stored_case(setting, lengths)
    return op_calls.paged_attention(case.q, case.cache, case.index, case.kv_of_head, window=window)


def matmul(setting: Setting, type: WeightType | None = None, **sizes: int) -> Call:
    return op_calls.matmul(setting, type or setting.plain_type, **{"rows": 5, "n": 48, "k": 96} | sizes)


Build = Callable[[Setting], Call]
CALLS: dict[str, Build] = {
    "embed": partial(op_calls.embed, rows=7, d=40, vocabulary=50),
    "embed Q4_0": partial(op_calls.embed_quantised, file_type="Q4_0", rows=7, d=96, vocabulary=50),
    "embed Q4_1": partial(op_calls.embed_quantised, file_type="Q4_1", rows=7, d=96, vocabulary=50),
    "embed Q8_0": partial(op_calls.embed_quantised, file_type="Q8_0", rows=7, d=96, vocabulary=50),
    "rms_norm": partial(op_calls.rms_norm, rows=5, d=72),
    "rms_norm wide": partial(op_calls.rms_norm, rows=3, d=8200),
    "add_rms_norm": partial(op_calls.add_rms_norm, rows=5, d=72),
    "add_rms_norm wide": partial(op_calls.add_rms_norm, rows=3, d=8200),
    "rotary": partial(op_calls.rotary, rows=9, num_heads=5, num_kv_heads=2, head_dim=32),
    "store_kv": store_kv,
    "paged_attention rows": partial(attention, lengths=(1, 1)),
    "paged_attention tiles": partial(attention, lengths=(5, 33, 1)),
    "paged_attention window": partial(attention, lengths=(5, 33), window=7),
    "silu_mul": partial(op_calls.silu_mul, rows=5, f=77),
    "select_rows": partial(op_calls.select_rows, rows=9, samples=4, d=72),
    "matmul": matmul,
    **{f"matmul {type}": partial(matmul, type=type) for type in QUANTISED},
    "matmul many rows": partial(matmul, rows=150, n=100, k=160),
    "matmul gelu_tanh": partial(matmul, epilogue="gelu_tanh"),
    "matmul silu_mul": partial(matmul, epilogue="silu_mul"),
    "sample": partial(op_calls.sample, rows=4, vocabulary=700, filters={}),
    "sample filtered": partial(
        op_calls.sample, rows=4, vocabulary=700, filters={"top_k": 40, "top_p": 0.9, "min_p": 0.01}
    ),
    "swap": partial(op_calls.swap, num_blocks=9, block_elements=64, to_host=True),
    "swap in": partial(op_calls.swap, num_blocks=9, block_elements=64, to_host=False),
    "all_reduce": partial(collective_calls.all_reduce, group=None, rows=5, d=72),
    "all_reduce_add_rms_norm": partial(collective_calls.all_reduce_add_rms_norm, group=None, rows=5, d=72),
    "matmul_all_reduce": lambda setting: collective_calls.matmul_all_reduce(
        setting, None, setting.plain_type, rows=5, n=48, k=96
    ),
    "matmul_all_reduce_add_rms_norm": lambda setting: collective_calls.matmul_all_reduce_add_rms_norm(
        setting, None, setting.plain_type, rows=5, n=48, k=96
    ),
}


def op_of(name: str) -> str:
    return name.split(maxsplit=1)[0]


def backends_of(name: str, dtype: torch.dtype) -> list[Backend | None]:
    """Those of a GPU that have this form; None: none is forced."""
    last = name.rsplit(maxsplit=1)[-1]
    weight_type = last if last in QUANTISED else Setting.on("cpu", dtype).plain_type
    return [None, *gpu_backends(op_of(name), weight_type)]
