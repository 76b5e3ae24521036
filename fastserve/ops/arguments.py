"""What the ops ask of their arguments; every complaint is a ValueError that names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from fastserve.ops.backend import activation_dtypes


def require(name: str, holds: bool, rule: str, value: object) -> None:
    """Raises ValueError("<name> must <rule>, got <value>") unless the rule holds."""
    if not holds:
        raise ValueError(f"{name} must {rule}, got {value}")


def names(*dtypes: torch.dtype) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def describe(tensor: Tensor) -> str:
    return f"{names(tensor.dtype)} {list(tensor.shape)} with strides {list(tensor.stride())}"


def rows(
    name: str,
    tensor: Tensor,
    *,
    num_rows: int | None = None,
    num_columns: int | None = None,
    written: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """An activation [rows, columns], each row contiguous; rows that are written do not overlap.

    dtype: of another activation of the op; None: any that the device has: fp32, on GPUs also bf16 and fp16
    """
    dtypes = activation_dtypes(tensor.device) if dtype is None else (dtype,)
    good = (
        tensor.dim() == 2
        and tensor.dtype in dtypes
        and (num_rows is None or tensor.shape[0] == num_rows)
        and (num_columns is None or tensor.shape[1] == num_columns)
        and (tensor.stride(1) == 1 or tensor.shape[1] <= 1)
        and (not written or tensor.shape[0] <= 1 or tensor.stride(0) >= tensor.shape[1])
    )
    if not good:
        wanted = [
            any_size if size is None else size for size, any_size in ((num_rows, "T"), (num_columns, "D"))
        ]
        require(
            name,
            False,
            f"be {names(*dtypes)} [{wanted[0]}, {wanted[1]}] with contiguous rows",
            describe(tensor),
        )


def vector(name: str, tensor: Tensor, *, dtype: torch.dtype, size: int | None = None) -> None:
    """A contiguous vector."""
    good = (
        tensor.dim() == 1
        and tensor.dtype == dtype
        and (size is None or tensor.shape[0] == size)
        and tensor.is_contiguous()
    )
    if not good:
        wanted = f"{names(dtype)} [{size if size is not None else 'size'}]"
        require(name, False, f"be contiguous {wanted}", describe(tensor))
