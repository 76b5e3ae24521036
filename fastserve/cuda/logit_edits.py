"""Penalties, biases and bans, applied to logits as lists of entries (csrc/program/step_columns.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastserve import _C


def apply_edits(slots: _C.SlotTable, logits: Tensor) -> None:
    """Edits the rows of logits [S, V] as the requests of the step that was laid out ask for, in place.

    The arithmetic and its order are those of csrc/cpu/sample_row.h, so bits are too.
    """
    for kind, lists in slots.edits().items():
        rows, ids = (_column(values, torch.int32, logits.device).long() for values in lists[:2])
        values = logits[rows, ids].float()
        logits[rows, ids] = _EDITS[kind](values, lists[2:]).to(logits.dtype)


def _column(values: bytes, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(values), dtype=dtype).to(device)


def _penalise(x: Tensor, lists: Sequence[bytes]) -> Tensor:
    """Source: Keskar et al. 2019, section 4.1 (repetition); OpenAI's API (presence, frequency)."""
    counts = _column(lists[0], torch.int32, x.device)
    repetition, presence, frequency = (_column(values, torch.float32, x.device) for values in lists[1:])
    x = torch.where(x > 0, x / repetition, x * repetition)
    return torch.where(counts > 0, x - frequency * counts - presence, x)


def _bias(x: Tensor, lists: Sequence[bytes]) -> Tensor:
    return x + _column(lists[0], torch.float32, x.device)


def _ban(x: Tensor, lists: Sequence[bytes]) -> Tensor:
    return torch.full_like(x, -torch.inf)


_EDITS = {"penalties": _penalise, "biases": _bias, "bans": _ban}
