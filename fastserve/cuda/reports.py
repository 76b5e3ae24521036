"""Logprobs of the model's own distribution: of the token that a row drew or was given, and of the likeliest ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_LOGIT = torch.finfo(torch.float32).max


class Wanted(NamedTuple):
    row: int
    target: int  # -1: what the row draws
    num_top: int


class Report(NamedTuple):
    row: int
    logprob: float
    rank: int  # 1: the likeliest
    top_ids: list[int]
    top_logprobs: list[float]


def own_logprobs(logits: Tensor, wanted: Sequence[Wanted]) -> Tensor | None:
    """[n, V] fp32 of the rows that report, before anything was done to them; None: there are none."""
    if not wanted:
        return None
    rows = torch.tensor([entry.row for entry in wanted], device=logits.device)
    x = torch.nan_to_num(logits[rows].float(), nan=-torch.inf, posinf=MAX_LOGIT, neginf=-torch.inf)
    return x.double().log_softmax(-1).float()


def make_reports(logprobs: Tensor | None, wanted: Sequence[Wanted], tokens: Sequence[int]) -> list[Report]:
    """tokens: what each of the step's rows drew."""
    if logprobs is None:
        return []
    ids = [entry.target if entry.target >= 0 else tokens[entry.row] for entry in wanted]
    own = logprobs.gather(1, torch.tensor(ids, device=logprobs.device)[:, None])
    ranks = 1 + (logprobs > own).sum(1)
    most = max(entry.num_top for entry in wanted)
    top = (
        torch.sort(logprobs, dim=1, descending=True, stable=True) if most else None
    )  # ties by the lower id first
    top_values = top.values[:, :most].tolist() if top else [[]] * len(wanted)
    top_ids = top.indices[:, :most].tolist() if top else [[]] * len(wanted)
    return [
        Report(entry.row, logprob, rank, top_ids[i][: entry.num_top], top_values[i][: entry.num_top])
        for i, (entry, logprob, rank) in enumerate(
            zip(wanted, own[:, 0].tolist(), ranks.tolist(), strict=True)
        )
    ]
