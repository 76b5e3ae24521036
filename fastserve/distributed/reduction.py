"""What torch calls a dtype and a reduction, as the numbers that the native collectives take."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed import ReduceOp

from fastserve import _C

_TYPES = {name: index for index, name in enumerate(_C.DATA_TYPES)}
_OPS = {name: index for index, name in enumerate(_C.REDUCE_OPS)}
_TYPE_OF = {
    torch.float32: _TYPES["f32"],
    torch.float64: _TYPES["f64"],
    torch.float16: _TYPES["f16"],
    torch.bfloat16: _TYPES["bf16"],
    torch.uint8: _TYPES["u8"],
    torch.int8: _TYPES["s8"],
    torch.int16: _TYPES["s16"],
    torch.int32: _TYPES["s32"],
    torch.int64: _TYPES["s64"],
    torch.bool: _TYPES["u8"],
    torch.complex64: _TYPES["f32"],
    torch.complex128: _TYPES["f64"],
}
_OP_OF = {
    "SUM": _OPS["sum"],
    "AVG": _OPS["sum"],
    "PRODUCT": _OPS["product"],
    "MIN": _OPS["min"],
    "MAX": _OPS["max"],
    "BAND": _OPS["bit_and"],
    "BOR": _OPS["bit_or"],
    "BXOR": _OPS["bit_xor"],
}
# On 0 and 1: a sum is "any", a product "all".
_OP_OF_BOOL = {**_OP_OF, "SUM": _OPS["max"], "PRODUCT": _OPS["min"]}
_BITWISE = {"BAND", "BOR", "BXOR"}
_OF_COMPLEX = {"SUM", "AVG"}


class Reduction(NamedTuple):
    num_elements: int
    type: int
    op: int
    average: bool


def reduction_of(tensor: Tensor, reduce_op: ReduceOp) -> Reduction:
    """Raises ValueError for a dtype that has no sum, or not this one."""
    op, dtype = cast(Any, reduce_op).op.name, tensor.dtype
    if dtype not in _TYPE_OF:
        raise ValueError(f"tensors of {dtype} cannot be reduced; cast them to one of {_names()}")
    if op not in _OP_OF:
        raise ValueError(f"the reduction {op} is not supported; scale the tensor and use SUM")
    if op in _BITWISE and (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(f"{op} is for integers, got a tensor of {dtype}")
    if dtype.is_complex and op not in _OF_COMPLEX:
        raise ValueError(f"complex tensors can be summed, not reduced by {op}")
    if dtype is torch.bool and op == "AVG":
        raise ValueError("bool tensors have no average")
    num_elements = tensor.numel() * (2 if dtype.is_complex else 1)
    table = _OP_OF_BOOL if dtype is torch.bool else _OP_OF
    return Reduction(num_elements, _TYPE_OF[dtype], table[op], op == "AVG")


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in _TYPE_OF)
