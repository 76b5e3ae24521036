"""Draws one token per row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, registry
from fastserve.ops.philox import uniform

GREEDY_BELOW = 1e-5  # temperature; dividing by less would leave nothing but the likeliest token


class Sampled(NamedTuple):
    """What each row drew.

    token_ids [S] int32
    logprobs  [S] fp32, of the model's own distribution: before temperature and truncation
    ranks     [S] int32, 1 + how many tokens are likelier
    """

    token_ids: Tensor
    logprobs: Tensor
    ranks: Tensor


def sample(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    output_idx: Tensor,
    *,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
) -> Sampled:
    """The token of largest logit / temperature + Gumbel noise, among those that top-k, top-p and min-p leave.

    logits      [S, V] fp32, on GPUs also bf16 or fp16; rows contiguous
    temperature [S]    fp32; below 1e-5: the largest logit, ties to the lowest id
    seed        [S]    int64, and
    output_idx  [S]    int32: with the token id they key the noise; a draw depends on nothing else of a batch
    top_k       [S]    int32: keep the k largest; 0 (default): all
    top_p       [S]    fp32:  then the likeliest that together reach top_p; 1 (default): all
    min_p       [S]    fp32:  then those at least min_p times as likely as the likeliest; 0 (default): all
    Raises ValueError naming the argument whose shape or dtype is wrong.
    Source: Gumbel-max, e.g. Maddison et al. 2014; Philox, Salmon et al. 2011.
    """
    return Sampled(*_op(logits, temperature, seed, output_idx, top_k, top_p, min_p))


def reference(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    output_idx: Tensor,
    *,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
) -> Sampled:
    tokens = []
    for s, row in enumerate(logits.float()):
        if temperature[s] < GREEDY_BELOW:
            tokens.append(int(row.argmax()))
            continue
        scaled = row / temperature[s]
        kept = _truncate(
            scaled,
            top_k=0 if top_k is None else int(top_k[s]),
            top_p=1.0 if top_p is None else float(top_p[s]),
            min_p=0.0 if min_p is None else float(min_p[s]),
        )
        noise = -torch.log(-torch.log(uniform(int(seed[s]), int(output_idx[s]), row.numel()))).to(row.device)
        tokens.append(int(torch.where(kept, scaled + noise, -torch.inf).float().argmax()))
    token_ids = torch.tensor(tokens, dtype=torch.int64, device=logits.device)[:, None]
    logprobs = logits.double().log_softmax(-1).gather(1, token_ids).float()
    ranks = 1 + (logits > logits.gather(1, token_ids)).sum(1)
    return Sampled(token_ids.squeeze(1).int(), logprobs.squeeze(1), ranks.int())


def _truncate(scaled: Tensor, *, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens may be drawn, as a mask [V]."""
    order = scaled.argsort(descending=True, stable=True)
    kept = torch.ones_like(order, dtype=torch.bool)  # in that order
    if top_k:
        kept[top_k:] = False
    probs = torch.where(kept, scaled[order].double(), -torch.inf).softmax(-1)
    kept &= probs.cumsum(-1) - probs < top_p
    kept &= probs >= min_p * probs[0]
    return torch.zeros_like(kept).scatter(0, order, kept)


def _allocate(  # noqa: PLR0917 (the schema's order)
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    output_idx: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments.rows("logits", logits)
    num_rows, vocab_size = logits.shape
    arguments.require("logits", vocab_size >= 1, "have at least one column", vocab_size)
    arguments.vector("temperature", temperature, dtype=torch.float32, size=num_rows)
    options = (
        ("top_k", top_k, torch.int32),
        ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32),
    )
    for name, tensor, dtype in options:
        if tensor is not None:
            arguments.vector(name, tensor, dtype=dtype, size=num_rows)
    arguments.vector("seed", seed, dtype=torch.int64, size=num_rows)
    arguments.vector("output_idx", output_idx, dtype=torch.int32, size=num_rows)
    integers = logits.new_empty(num_rows, dtype=torch.int32)
    return integers, logits.new_empty(num_rows, dtype=torch.float32), torch.empty_like(integers)


def _cpu(  # noqa: PLR0917 (the schema's order)
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    output_idx: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    token_ids, logprobs, ranks = _allocate(logits, temperature, seed, output_idx, top_k, top_p, min_p)
    num_rows = logits.shape[0]
    top_k = torch.zeros(num_rows, dtype=torch.int32) if top_k is None else top_k
    top_p = torch.ones(num_rows) if top_p is None else top_p
    min_p = torch.zeros(num_rows) if min_p is None else min_p
    if num_rows:
        _C.ops.sample(
            logits.data_ptr(), logits.stride(0), logits.shape[0], logits.shape[1], temperature.data_ptr(),
            top_k.data_ptr(), top_p.data_ptr(), min_p.data_ptr(), seed.data_ptr(), output_idx.data_ptr(),
            token_ids.data_ptr(), logprobs.data_ptr(), ranks.data_ptr(),
        )  # fmt: skip
    return token_ids, logprobs, ranks


def _reference(  # noqa: PLR0917 (the schema's order)
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    output_idx: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    sampled = reference(logits, temperature, seed, output_idx, top_k=top_k, top_p=top_p, min_p=min_p)
    return sampled.token_ids, sampled.logprobs, sampled.ranks


def _triton(  # noqa: PLR0917 (the schema's order)
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    output_idx: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from fastserve.kernels.sample import sample as kernel

    token_ids, logprobs, ranks = _allocate(logits, temperature, seed, output_idx, top_k, top_p, min_p)
    kernel(
        logits, temperature, seed, output_idx, top_k=top_k, top_p=top_p, min_p=min_p,
        token_ids=token_ids, logprobs=logprobs, ranks=ranks,
    )  # fmt: skip
    return token_ids, logprobs, ranks


_op = registry.register(
    "sample(Tensor logits, Tensor temperature, Tensor seed, Tensor output_idx, Tensor? top_k, Tensor? top_p, "
    "Tensor? min_p) -> (Tensor, Tensor, Tensor)",
    fake=_allocate,
    reference=_reference,
    cpu=_cpu,
    triton=_triton,
)
