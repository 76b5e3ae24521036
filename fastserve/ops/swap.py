"""Moves KV blocks between tiers: device memory and pinned memory of the host."""

from __future__ import annotations

import torch
from torch import Tensor

from fastserve.ops import arguments, device_call, registry


def swap(source: Tensor, target: Tensor, source_blocks: Tensor, target_blocks: Tensor) -> None:
    """target[target_blocks] = source[source_blocks], whole blocks, bit for bit.

    source, target               [B, ...] contiguous, blocks of one shape and dtype, on GPUs of a multiple of 16 bytes;
                                 one may be pinned memory of the host, the other a GPU's; target is updated
    source_blocks, target_blocks [n] int32, on the GPU if either side is; no block comes twice among the targets
    Raises ValueError naming the argument whose shape or dtype is wrong.
    """
    _op(source, target, source_blocks, target_blocks)


def reference(source: Tensor, target: Tensor, source_blocks: Tensor, target_blocks: Tensor) -> None:
    target[target_blocks.to(target.device).long()] = source[source_blocks.to(source.device).long()].to(
        target.device
    )


def _check(source: Tensor, target: Tensor, source_blocks: Tensor, target_blocks: Tensor) -> None:
    good = source.dim() >= 1 and source.is_contiguous()
    arguments.require("source", good, "be contiguous [B, ...]", arguments.describe(source))
    alike = target.shape[1:] == source.shape[1:] and target.dtype == source.dtype and target.is_contiguous()
    arguments.require(
        "target",
        alike,
        f"be contiguous blocks as source, {arguments.describe(source)}",
        arguments.describe(target),
    )
    arguments.vector("source_blocks", source_blocks, dtype=torch.int32)
    arguments.vector("target_blocks", target_blocks, dtype=torch.int32, size=source_blocks.shape[0])


def _cpu(source: Tensor, target: Tensor, source_blocks: Tensor, target_blocks: Tensor) -> None:
    _check(source, target, source_blocks, target_blocks)
    target.index_copy_(0, target_blocks.long(), source.index_select(0, source_blocks.long()))


def _cuda(source: Tensor, target: Tensor, source_blocks: Tensor, target_blocks: Tensor) -> None:
    _check(source, target, source_blocks, target_blocks)
    for name, tensor in (("source", source), ("target", target)):
        reached = tensor.is_cuda or tensor.is_pinned()
        arguments.require(name, reached, "be on the GPU or in pinned memory", tensor.device)
    block_bytes = source[:1].nbytes if source.shape[0] else 0
    if source_blocks.shape[0] and block_bytes:
        device_call.cuda().swap(
            source.data_ptr(), target.data_ptr(), source_blocks.data_ptr(), target_blocks.data_ptr(),
            source_blocks.shape[0], block_bytes, device_call.stream_of(source_blocks),
        )  # fmt: skip


_op = registry.register(
    "swap(Tensor source, Tensor(a!) target, Tensor source_blocks, Tensor target_blocks) -> ()",
    fake=_check,
    reference=reference,
    cpu=_cpu,
    cuda=_cuda,
)
