"""Run by torchrun in every rank, in Triton's interpreter: the fused sums, against matmuls and sums in plain torch."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import fastserve.ops
from fastserve.distributed.group import Group, init_group
from fastserve.errors import RankLostError
from fastserve.ops import PackedWeight, pack, reference
from fastserve.ops.packed_weight import WeightType

N = 300  # columns: three units of 128, so that every rank owns some
CASES: tuple[tuple[int, torch.dtype, WeightType], ...] = (
    (1, torch.float32, "f32"),
    (20, torch.float16, "f16"),
    (1, torch.float16, "q8"),
    (1, torch.float32, "q4"),
    (1, torch.float16, "q4m"),
)


def operands(
    group: Group, dtype: torch.dtype, weight_type: WeightType, num_rows: int
) -> tuple[Tensor, PackedWeight]:
    """Products that are exact in fp32 for plain weights: the interpreter's BLAS adds in an order of its own."""
    generator = torch.Generator().manual_seed(10 * num_rows + group.rank)
    k = 64 + 32 * group.rank  # ranks need not be equal
    x, w = (torch.randint(-31, 32, (rows, k), generator=generator) / 16 for rows in (num_rows, N))
    return x.to(dtype), pack(w, weight_type)


def around_the_ring(part: Tensor, size: int) -> Tensor:
    """The sum in fp32, from rank c + 1 on for a column of chunk c, rounded once."""
    parts = [torch.empty_like(part) for _ in range(size)]
    dist.all_gather(parts, part)
    columns = []
    for column in range(N):
        chunk = ((column // 128 + 1) * size - 1) // 3
        total = parts[(chunk + 1) % size][:, column].float()
        for step in range(2, size + 1):
            total = total + parts[(chunk + step) % size][:, column].float()
        columns.append(total)
    return torch.stack(columns, dim=1).to(part.dtype)


def assert_same_bits_on_all_ranks(tensor: Tensor, group: Group) -> None:
    digest = hashlib.sha256(tensor.contiguous().numpy().tobytes()).digest()
    assert len(set(group.exchange.all_gather(digest))) == 1


def check_it_is_a_matmul_and_a_sum(group: Group) -> None:
    for num_rows, dtype, weight_type in CASES:
        x, w = operands(group, dtype, weight_type, num_rows)
        fast = fastserve.ops.matmul_all_reduce(x, w, group)
        assert fast.dtype == dtype
        assert torch.equal(fast, around_the_ring(fastserve.ops.matmul(x, w), group.size)), weight_type
        slow = reference.matmul_all_reduce(x, w, group)
        assert (fast.float() - slow.float()).norm() <= 1e-3 * slow.float().norm(), weight_type
        assert_same_bits_on_all_ranks(fast, group)


def check_the_norm_behind_it(group: Group) -> None:
    shared = torch.Generator().manual_seed(7)
    x, w = operands(group, torch.float16, "f16", 5)
    residual, norm_weight = torch.randn(5, N, generator=shared).half(), torch.randn(N, generator=shared)
    fused, halves = residual.clone(), residual.clone()
    out = fastserve.ops.matmul_all_reduce_add_rms_norm(x, w, group, fused, norm_weight, 1e-5)
    total = fastserve.ops.matmul_all_reduce(x, w, group)
    assert torch.equal(out, fastserve.ops.add_rms_norm(total, halves, norm_weight, 1e-5))
    assert torch.equal(fused, halves)
    slow = reference.matmul_all_reduce_add_rms_norm(x, w, group, residual.clone(), norm_weight, 1e-5)
    assert (out.float() - slow.float()).norm() <= 2e-3 * slow.float().norm()
    assert_same_bits_on_all_ranks(out, group)


def check_that_a_lost_rank_is_noticed(group: Group) -> None:
    x, w = operands(group, torch.float32, "f32", 1)
    if group.rank == group.size - 1:
        os._exit(0)
    with pytest.raises(RankLostError, match=f"rank {group.size - 1} of {group.size} .* died"):
        fastserve.ops.matmul_all_reduce(x, w, group)


def main() -> None:
    dist.init_process_group("gloo")
    group = init_group(heap_bytes=32 << 20)
    check_it_is_a_matmul_and_a_sum(group)
    check_the_norm_behind_it(group)
    dist.barrier()
    print(f"rank {group.rank} of {group.size}: passed", flush=True)
    check_that_a_lost_rank_is_noticed(group)
    print("noticed", flush=True)
    os._exit(0)  # gloo would wait for the lost rank


if __name__ == "__main__":
    main()
