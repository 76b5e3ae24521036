"""Whether the tensors of a collective fit each other, and one tensor as a part for each rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_alike(name: str, tensor: Tensor, others: Sequence[Tensor]) -> None:
    """Raises ValueError unless all have the tensor's size and dtype. name: of the collective."""
    for other in others:
        if (other.numel(), other.dtype) != (tensor.numel(), tensor.dtype):
            raise ValueError(
                f"{name} takes tensors of one size and dtype, got {tensor.numel()} of {tensor.dtype} and "
                f"{other.numel()} of {other.dtype}"
            )


def check_whole(name: str, whole: Tensor, part: Tensor, size: int) -> None:
    """Raises ValueError unless `whole` is as large as `size` parts, and of their dtype."""
    if (whole.numel(), whole.dtype) != (size * part.numel(), part.dtype):
        raise ValueError(
            f"{name} takes a tensor of {size} times {part.numel()} elements of {part.dtype}, got "
            f"{whole.numel()} of {whole.dtype}"
        )


def split_rows(name: str, tensor: Tensor, sizes: Sequence[int], count: int) -> list[Tensor]:
    """Along the first dimension: in equal parts where no sizes are given. Raises ValueError where they do not fit."""
    rows = tensor.shape[0] if tensor.dim() else 1
    sizes = list(sizes) or [rows // count] * count
    if sum(sizes) != rows or len(sizes) != count:
        raise ValueError(
            f"the splits of the {name} must be {count} and add up to its {rows} rows, got {sizes}"
        )
    return list(torch.split(tensor, sizes))
