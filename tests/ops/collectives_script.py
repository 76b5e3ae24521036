"""Run by torchrun in every rank: the collective ops against their references, over gloo."""

from __future__ import annotations

import hashlib
from typing import get_args

import pytest
import torch
import torch.distributed as dist

import fastserve.ops
from fastserve import _C
from fastserve.distributed.group import Group, init_group
from fastserve.errors import CapacityError
from fastserve.ops import pack, reference
from fastserve.ops.packed_weight import WeightType


def digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).digest()


def assert_same_bits_on_all_ranks(tensor: torch.Tensor, group: Group) -> None:
    assert len(set(group.exchange.all_gather(digest(tensor)))) == 1


def check_all_reduce(group: Group, generator: torch.Generator) -> None:
    for num_rows, d in ((1, 1), (3, 17), (130, 576)):
        x = torch.randn(num_rows, d + 5, generator=generator)[:, :d]
        slow = x.clone()
        fastserve.ops.all_reduce(x, group)
        reference.all_reduce(slow, group)
        torch.testing.assert_close(x, slow, rtol=1e-6, atol=1e-6)
        assert_same_bits_on_all_ranks(x, group)


def check_all_reduce_add_rms_norm(group: Group, generator: torch.Generator) -> None:
    x, residual = torch.randn(5, 100, generator=generator), torch.ones(5, 100)
    total, halves, weight = x.clone(), residual.clone(), torch.full((100,), 0.5)
    out = fastserve.ops.all_reduce_add_rms_norm(x, group, residual, weight, 1e-5)
    fastserve.ops.all_reduce(total, group)
    assert torch.equal(out, fastserve.ops.add_rms_norm(total, halves, weight, 1e-5))
    assert torch.equal(residual, halves)
    assert_same_bits_on_all_ranks(out, group)


def check_matmul_all_reduce(group: Group, generator: torch.Generator) -> None:
    k_rank = 64 + 32 * group.rank  # ranks need not be equal
    for weight_type in get_args(WeightType):
        w = pack(torch.randn(100, k_rank, generator=generator), weight_type)
        x = torch.randn(33, k_rank, generator=generator)
        fast = fastserve.ops.matmul_all_reduce(x, w, group)
        slow = reference.matmul_all_reduce(x, w, group)
        assert (fast - slow).norm() <= 1e-3 * slow.norm(), weight_type
        assert_same_bits_on_all_ranks(fast, group)
        for num_rows in (1, 2, 7):
            assert torch.equal(fastserve.ops.matmul_all_reduce(x[:num_rows], w, group), fast[:num_rows])


def check_norm_behind_it(group: Group, generator: torch.Generator) -> None:
    """Rows in one slice and in several, columns that fill no vector: the bits of the two ops in turn."""
    shared = torch.Generator().manual_seed(7)
    for num_rows, n in ((1, 576), (5, 100), (300, 576)):
        w = pack(torch.randn(n, 64, generator=generator), "q8")
        x = torch.randn(num_rows, 64, generator=generator)
        wide = torch.randn(num_rows, n + 3, generator=shared)
        fused, halves = wide.clone()[:, :n], wide.clone()[:, :n]
        norm_weight = torch.randn(n, generator=shared)
        out = fastserve.ops.matmul_all_reduce_add_rms_norm(x, w, group, fused, norm_weight, 1e-5)
        expected = fastserve.ops.add_rms_norm(
            fastserve.ops.matmul_all_reduce(x, w, group), halves, norm_weight, 1e-5
        )
        assert torch.equal(out, expected)
        assert torch.equal(fused, halves)
        slow = reference.matmul_all_reduce_add_rms_norm(x, w, group, wide[:, :n].clone(), norm_weight, 1e-5)
        assert (out - slow).norm() <= 1e-3 * slow.norm()
        assert_same_bits_on_all_ranks(out, group)


def check_symmetric(group: Group) -> None:
    """Sums of tensors that all ranks see: the bits of private ones, for all of them, one after the other."""
    tensors = [group.empty(count, dtype=torch.float32) for count in (1, 100, 70_000)]
    halves = group.empty(3, 1000, dtype=torch.bfloat16)
    for round_idx in range(3):
        generator = torch.Generator().manual_seed(100 * round_idx + group.rank)
        for tensor in (*tensors, halves, tensors[-1][:5000]):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
            private = tensor.clone()
            group.all_reduce(tensor)
            group.all_reduce(private)
            assert torch.equal(tensor, private)
    with pytest.raises(CapacityError, match="raise heap_bytes of init_group"):
        group.empty(1 << 20, dtype=torch.float32)
    with pytest.raises(ValueError, match="shape must hold no negative numbers"):
        group.empty(-1, dtype=torch.float32)
    assert group.empty(0, 7, dtype=torch.float32).shape == (0, 7)


def check_refusals(group: Group) -> None:
    d = 1 + group.exchange.gather_capacity // 4
    with pytest.raises(ValueError, match=f"group must hold a row of {d} floats"):
        fastserve.ops.all_reduce(torch.zeros(1, d), group)


def main() -> None:
    dist.init_process_group("gloo")
    group = init_group(symmetric_bytes=1 << 20, heap_bytes=1 << 20)
    generator = torch.Generator().manual_seed(group.rank)
    supported = [name for name, has, _ in _C.isas() if has]
    for isa in supported:
        _C.ops.use_isa(isa)
        check_all_reduce(group, generator)
        check_all_reduce_add_rms_norm(group, generator)
        check_matmul_all_reduce(group, generator)
        check_norm_behind_it(group, generator)
    check_symmetric(group)
    check_refusals(group)
    dist.destroy_process_group()
    print(f"rank {group.rank} of {group.size}: passed on {', '.join(supported)}")


if __name__ == "__main__":
    main()
