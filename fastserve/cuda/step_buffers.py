"""The rows of a step in device memory, at places that never change, so that captured graphs can read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastserve import _C
from fastserve.cuda.runtime import Runtime
from fastserve.distributed.rank_program import RankSettings
from fastserve.ops import KvIndex

_DTYPES = {"i32": torch.int32, "i64": torch.int64, "f32": torch.float32}
KV_GROUP = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Views of the device's columns, as many rows as a step or a graph has."""

    token_ids: Tensor  # [T] int32
    index: KvIndex
    sample_rows: Tensor  # [S] int32
    temperature: Tensor  # [S] fp32, as are top_p and min_p
    top_k: Tensor  # [S] int32, as is output_idx
    top_p: Tensor
    min_p: Tensor
    seed: Tensor  # [S] int64
    output_idx: Tensor


def make_step_buffers(
    runtime: Runtime, settings: RankSettings, vocab_size: int
) -> tuple[_C.SlotTable, StepBuffers]:
    """A rank's slots, and the buffers that show their steps to the device."""
    slots = _C.SlotTable(
        max_tokens=settings.max_tokens,
        max_samples=settings.max_samples,
        num_slots=settings.num_slots,
        max_blocks=settings.max_blocks,
        vocab_size=vocab_size,
        num_blocks=[settings.num_blocks],
    )
    return slots, StepBuffers(runtime, slots, settings)


class StepBuffers:
    """Padding rows belong to a slot of their own, whose blocks are all one spare block behind the others: what they
    store is nobody's."""

    def __init__(self, runtime: Runtime, slots: _C.SlotTable, settings: RankSettings) -> None:
        self._slots = slots
        self._staged = runtime.pinned(slots.columns_bytes, dtype=torch.uint8)
        self._bytes = torch.zeros(slots.columns_bytes, dtype=torch.uint8, device=runtime.device)
        self._columns: dict[str, Tensor] = {}
        at = 0
        for name, kind, of_samples in _C.STEP_COLUMNS:
            num_values = settings.max_samples if of_samples else settings.max_tokens
            end = at + num_values * _DTYPES[kind].itemsize
            self._columns[name] = self._bytes[at:end].view(_DTYPES[kind])
            at = end
        assert at == slots.columns_bytes
        self._staged_tables = runtime.pinned(settings.num_slots + 1, settings.max_blocks, dtype=torch.int32)
        self._staged_tables[settings.num_slots] = settings.num_blocks
        self._tables = self._staged_tables.to(runtime.device, copy=True)

    def load(self, num_rows: int, num_samples: int) -> None:
        """Enqueues the copy of the step that the slots have laid out, padded to so many rows.

        The copy that the last step enqueued must be done.
        """
        self._slots.write_columns(num_rows, num_samples, self._staged.data_ptr())
        self._bytes.copy_(self._staged, non_blocking=True)
        if self._slots.granted:
            self._slots.write_tables(KV_GROUP, self._staged_tables.data_ptr())
            self._tables.copy_(self._staged_tables, non_blocking=True)

    def rows(self, num_rows: int, num_samples: int) -> Rows:
        of = self._columns
        return Rows(
            token_ids=of["token_ids"][:num_rows],
            index=KvIndex(of["row_slot"][:num_rows], of["positions"][:num_rows], self._tables),
            sample_rows=of["sample_rows"][:num_samples],
            temperature=of["temperature"][:num_samples],
            top_k=of["top_k"][:num_samples],
            top_p=of["top_p"][:num_samples],
            min_p=of["min_p"][:num_samples],
            seed=of["seed"][:num_samples],
            output_idx=of["output_idx"][:num_samples],
        )
