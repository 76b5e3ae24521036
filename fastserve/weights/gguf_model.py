"""A model's GGUF file: its architecture, its metadata, and its tensors by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastserve import _C
from fastserve.errors import WeightFileError


@dataclass(frozen=True, slots=True)
class TensorView:
    """Where a tensor of a supported type lies in memory: valid as long as its ModelFile lives."""

    name: str
    type: int  # GGUF type id
    type_name: str
    shape: tuple[int, ...]  # row-major: [N, K]
    n: int  # rows
    k: int  # columns
    num_bytes: int
    address: int

    @property
    def row_bytes(self) -> int:
        return self.num_bytes // self.n


class ModelFile:
    """A GGUF file that holds a whole model. Raises WeightFileError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _C.GgufFile(str(self.path))
        num_parts = self.metadata.get("split.count", 1)
        if num_parts not in (0, 1):
            raise WeightFileError(
                f"{self.path}: is one of {num_parts} parts, which is not supported: merge them into one file"
            )

    @property
    def architecture(self) -> str:
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise WeightFileError(f"{self.path}: metadata has no string general.architecture")
        return value

    @property
    def metadata(self) -> Mapping[str, object]:
        """int, float, bool, str, or a list of one of these, by key. No UTF-8: surrogateescape."""
        return self._file.metadata

    @property
    def tensors(self) -> Mapping[str, _C.GgufTensor]:
        """All tensors by name, also those of types that are not supported."""
        return self._file.tensors

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def tensor(self, name: str) -> TensorView:
        """Raises WeightFileError when there is no such tensor, or when its type is not supported."""
        address = self._file.data_address(name)
        found = self.tensors[name]
        return TensorView(
            name=name,
            type=found.type,
            type_name=found.type_name,
            shape=found.shape,
            n=found.n,
            k=found.k,
            num_bytes=found.nbytes,
            address=address,
        )

    def read(self, name: str) -> bytes:
        """A copy of the tensor's bytes: for the small ones."""
        return self._file.read(name)
