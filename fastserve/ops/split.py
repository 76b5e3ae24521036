"""Column views of a matrix that one matmul made."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

from fastserve.ops import arguments


def split(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Views of x's columns, `sizes` wide, from left to right; nothing is copied.

    x     [T, D], rows contiguous
    sizes sum to D
    Raises ValueError naming the argument that is wrong.
    """
    arguments.require("sizes", sum(sizes) == x.shape[-1], f"sum to x's {x.shape[-1]} columns", list(sizes))
    ends = list(accumulate(sizes))
    return tuple(x[:, end - size : end] for end, size in zip(ends, sizes, strict=True))


reference = split
