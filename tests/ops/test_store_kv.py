from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fastserve.ops
from fastserve.ops import KvCache, KvIndex, reference

from .kv_case import make_case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize(("lengths", "heads"), [((1,), (1, 4)), ((5, 33), (2, 20)), ((130, 7), (3, 64))])
def test_fast_equals_slow(
    isa: str,
    generator: torch.Generator,
    lengths: tuple[int, ...],
    heads: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    num_kv_heads, head_dim = heads
    case = make_case(
        generator, lengths, num_heads=num_kv_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype
    )
    slow = KvCache(case.cache.k.clone(), case.cache.v.clone())
    fastserve.ops.store_kv(case.k, case.v, case.cache, case.index)
    reference.store_kv(case.k, case.v, slow, case.index)
    for mine, oracle in ((case.cache.k, slow.k), (case.cache.v, slow.v)):
        torch.testing.assert_close(mine, oracle, rtol=0, atol=0, equal_nan=True)
    assert not slow.v[case.index.tables[0, 0].long(), :, 0].isnan().any()


def test_reads_columns_of_a_wider_matrix(generator: torch.Generator) -> None:
    case = make_case(generator, (20,), num_heads=2, num_kv_heads=2, head_dim=8)
    slow = KvCache(case.cache.k.clone(), case.cache.v.clone())
    k, v = fastserve.ops.split(torch.cat([case.k, case.v], dim=1), (16, 16))
    fastserve.ops.store_kv(k, v, case.cache, case.index)
    reference.store_kv(case.k, case.v, slow, case.index)
    torch.testing.assert_close(case.cache.k, slow.k, rtol=0, atol=0, equal_nan=True)


def test_a_gpus_backend_refuses_codes_and_says_what_it_keeps(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(generator, (5,), num_heads=2, num_kv_heads=2, head_dim=8, dtype=torch.uint8)
    monkeypatch.setenv("FASTSERVE_BACKEND", "triton")
    with pytest.raises(ValueError, match=r"cache\.v must be contiguous float32 or bfloat16 or float16 \["):
        fastserve.ops.store_kv(case.k, case.v, case.cache, case.index)


def test_passes_opcheck(generator: torch.Generator) -> None:
    case = make_case(generator, (5,), num_heads=2, num_kv_heads=2, head_dim=4)
    case.cache.k.zero_()  # opcheck compares what is mutated, and NaN never equals NaN
    case.cache.v.zero_()
    index = case.index
    args = (case.k, case.v, case.cache.k, case.cache.v, index.row_slot, index.positions, index.tables)
    torch.library.opcheck(torch.ops.fastserve.store_kv.default, args)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"positions": [0, 32]}, r"index.positions must be in \[0, 32\), got 32"),
        ({"positions": [-1, 0]}, r"index.positions must be in \[0, 32\), got -1"),
        ({"row_slot": [0, 1]}, r"index.row_slot must be in \[0, 1\), got 1"),
        ({"tables": [[0, 3]]}, r"index.tables must be in \[0, 3\), got 3"),
    ],
)
def test_an_index_out_of_range_is_refused(changed: dict[str, list[int]], message: str) -> None:
    content = {"row_slot": [0, 0], "positions": [0, 16], "tables": [[0, 1]], **changed}
    index = KvIndex(**{name: torch.tensor(value, dtype=torch.int32) for name, value in content.items()})
    cache = KvCache.empty(3, 1, 4)
    with pytest.raises(ValueError, match=message):
        fastserve.ops.store_kv(torch.zeros(2, 4), torch.zeros(2, 4), cache, index)


def test_a_bad_argument_is_named(generator: torch.Generator) -> None:
    case = make_case(generator, (5,), num_heads=2, num_kv_heads=2, head_dim=4)
    k, v, cache, index = case.k, case.v, case.cache, case.index
    with pytest.raises(ValueError, match="k must be float32"):
        fastserve.ops.store_kv(k[:, :7], v, cache, index)
    with pytest.raises(ValueError, match=r"v must be float32 \[5, 8\]"):
        fastserve.ops.store_kv(k, v[:4], cache, index)
    with pytest.raises(ValueError, match=r"cache\.v must"):
        fastserve.ops.store_kv(k, v, replace(cache, v=cache.v[:, :, :8]), index)
    with pytest.raises(ValueError, match=r"cache\.k must"):
        fastserve.ops.store_kv(k, v, replace(cache, k=cache.k.bfloat16()), index)
    with pytest.raises(ValueError, match=r"index\.tables must be contiguous int32"):
        fastserve.ops.store_kv(k, v, cache, replace(index, tables=index.tables.long()))
    with pytest.raises(ValueError, match=r"index.row_slot must be contiguous int32 \[5\]"):
        fastserve.ops.store_kv(k, v, cache, replace(index, row_slot=index.row_slot[:3]))
