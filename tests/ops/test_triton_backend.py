"""FASTSERVE_BACKEND=triton on CPU tensors, in the interpreter: each op that has the backend, against the reference.

bf16 is left out, for which the interpreter's tl.dot is wrong; the kernels' own tests are in tests/kernels.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastserve.ops
from fastserve.ops import KvCache, KvIndex, reference

DTYPES = (torch.float32, torch.float16)
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_BACKEND", "triton")


def close(got: Tensor, wanted: Tensor) -> None:
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, rtol=ROUNDING[got.dtype], atol=ROUNDING[got.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(generator: torch.Generator, dtype: torch.dtype) -> None:
    x, residual = (torch.randn(5, 72, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(72, generator=generator)
    close(fastserve.ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    mine, theirs = residual.clone(), residual.clone()
    close(fastserve.ops.add_rms_norm(x, mine, weight, 1e-5), reference.add_rms_norm(x, theirs, weight, 1e-5))
    close(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_type", ["plain", "q8", "q4", "q4m"])
def test_matmul(generator: torch.Generator, dtype: torch.dtype, weight_type: str) -> None:
    plain = "f32" if dtype == torch.float32 else "f16"
    w = fastserve.ops.pack(
        torch.randn(48, 96, generator=generator), plain if weight_type == "plain" else weight_type
    )  # type: ignore[arg-type]
    x = torch.randn(5, 96, generator=generator).to(dtype) / 10
    bias = torch.randn(48, generator=generator)
    close(
        fastserve.ops.matmul(x, w, bias=bias, epilogue="gelu_tanh"),
        reference.matmul(x, w, bias=bias, epilogue="gelu_tanh"),
    )
    close(fastserve.ops.matmul(x, w, epilogue="silu_mul"), reference.matmul(x, w, epilogue="silu_mul"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_what_was_stored(generator: torch.Generator, dtype: torch.dtype) -> None:
    head_dim, num_kv_heads, num_heads, num_rows = 32, 2, 5, 20
    index = KvIndex(
        torch.tensor([0] * 19 + [1], dtype=torch.int32),
        torch.tensor([*range(19), 0], dtype=torch.int32),
        torch.tensor([[3, 1], [0, 2]], dtype=torch.int32),
    )
    kv_of_head = torch.tensor([0, 0, 0, 1, 1], dtype=torch.int32)
    q = torch.randn(num_rows, num_heads * head_dim, generator=generator).to(dtype)
    k, v = (torch.randn(num_rows, num_kv_heads * head_dim, generator=generator).to(dtype) for _ in range(2))
    inv_freq = torch.rand(head_dim // 2, generator=generator)
    mine, theirs = (KvCache.empty(4, num_kv_heads, head_dim, dtype) for _ in range(2))
    outs = []
    for ops, cache in ((fastserve.ops, mine), (reference, theirs)):
        turned_q, turned_k = q.clone(), k.clone()
        ops.rotary(turned_q, turned_k, index.positions, inv_freq, head_dim=head_dim)
        ops.store_kv(turned_k, v, cache, index)
        outs.append(ops.paged_attention(turned_q, cache, index, kv_of_head, scale=head_dim**-0.5, window=7))
    close(mine.k, theirs.k)
    close(mine.v, theirs.v)
    close(*outs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_activations(generator: torch.Generator, dtype: torch.dtype) -> None:
    x = torch.randn(6, 40, generator=generator).to(dtype)
    close(fastserve.ops.silu_mul(x), reference.silu_mul(x))
    rows = torch.tensor([5, 0], dtype=torch.int32)
    close(fastserve.ops.select_rows(x, rows), reference.select_rows(x, rows))
    table = fastserve.ops.FileRows(x.view(torch.uint8), "F32" if dtype == torch.float32 else "F16", 40, dtype)
    close(fastserve.ops.embed(rows, table), reference.embed(rows, table))


def test_sample(generator: torch.Generator) -> None:
    logits = torch.randn(4, 100, generator=generator) * 3
    temperature = torch.tensor([0.0, 1.0, 0.7, 1.3])
    seed, output_idx = torch.arange(4), torch.arange(4, dtype=torch.int32)
    options = {
        "top_k": torch.tensor([0, 5, 0, 50], dtype=torch.int32),
        "top_p": torch.tensor([1.0, 1.0, 0.8, 0.9]),
    }
    got = fastserve.ops.sample(logits, temperature, seed, output_idx, **options)
    wanted = reference.sample(logits, temperature, seed, output_idx, **options)
    assert torch.equal(got.token_ids, wanted.token_ids)
    assert torch.equal(got.ranks, wanted.ranks)
    close(got.logprobs, wanted.logprobs)
