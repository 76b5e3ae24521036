"""The memory of torch tensors, as the native collectives take it: addresses and bytes, in one piece each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Buffer:
    """A tensor's elements in one piece, for the length of a `with`: its own memory, or a copy that is written back."""

    def __init__(self, tensor: Tensor, *, writes: bool = True) -> None:
        self._tensor = tensor
        self._writes = writes
        self._whole = tensor

    def __enter__(self) -> Buffer:
        tensor = self._tensor
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            raise ValueError(
                f"collectives take dense tensors on the CPU, got {tensor.layout} on {tensor.device}"
            )
        self._whole = tensor.detach().contiguous()
        self.address = self._whole.data_ptr()
        self.num_bytes = self._whole.numel() * self._whole.element_size()
        return self

    def __exit__(self, *error: object) -> None:
        if self._writes and self._whole.data_ptr() != self._tensor.data_ptr():
            self._tensor.detach().copy_(self._whole)

    def chunks(self, count: int) -> list[int]:
        """Addresses of `count` equal parts."""
        return [self.address + index * self.num_bytes // count for index in range(count)]


class Buffers:
    """The same for a list of tensors."""

    def __init__(self, tensors: Sequence[Tensor], *, writes: bool = True) -> None:
        self._buffers = [Buffer(tensor, writes=writes) for tensor in tensors]

    def __enter__(self) -> Buffers:
        for buffer in self._buffers:
            buffer.__enter__()
        self.addresses = [buffer.address for buffer in self._buffers]
        self.num_bytes = [buffer.num_bytes for buffer in self._buffers]
        return self

    def __exit__(self, *error: object) -> None:
        for buffer in self._buffers:
            buffer.__exit__(*error)
