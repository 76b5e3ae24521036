from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve.ops import Sampled, reference

FILTERS: list[dict[str, float]] = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.3},
    {"min_p": 0.2},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.01},
]


def filled(num_rows: int, filters: dict[str, float]) -> dict[str, torch.Tensor]:
    return {
        name: torch.full((num_rows,), value, dtype=torch.int32 if name == "top_k" else torch.float32)
        for name, value in filters.items()
    }


def draw(
    logits: torch.Tensor, temperature: float, filters: dict[str, float] | None = None, *, slow: bool = False
) -> Sampled:
    """Rows draw with the seeds 0, 1, ... at output index 5."""
    num_rows = len(logits)
    sample = reference.sample if slow else fastserve.ops.sample
    return sample(
        logits,
        torch.full((num_rows,), temperature),
        torch.arange(num_rows),
        torch.full((num_rows,), 5, dtype=torch.int32),
        **filled(num_rows, filters or {}),
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 65), (70, 130), (20, 1000)], ids=str)
def test_fast_equals_slow(
    isa: str,
    generator: torch.Generator,
    shape: tuple[int, int],
    filters: dict[str, float],
    temperature: float,
) -> None:
    logits = 3 * torch.randn(shape, generator=generator)
    before = logits.clone()
    fast, slow = draw(logits, temperature, filters), draw(before, temperature, filters, slow=True)
    assert torch.equal(fast.token_ids, slow.token_ids)
    assert torch.equal(fast.ranks, slow.ranks)
    torch.testing.assert_close(fast.logprobs, slow.logprobs, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits, before)


def test_greedy_ties_go_to_the_lowest_id(isa: str) -> None:
    logits = torch.zeros(2, 100)
    logits[0, [30, 80]] = 1.0
    assert draw(logits, 0.0).token_ids.tolist() == [30, 0]


def test_a_row_draws_the_same_alone_and_in_a_batch(isa: str, generator: torch.Generator) -> None:
    logits = torch.randn(9, 300, generator=generator)
    whole = draw(logits, 1.0)
    alone = fastserve.ops.sample(
        logits[4:5], torch.ones(1), torch.tensor([4]), torch.tensor([5], dtype=torch.int32)
    )
    assert alone.token_ids[0] == whole.token_ids[4]


def test_draws_follow_the_distribution(isa: str) -> None:
    probs = torch.tensor([0.5, 0.25, 0.15, 0.1])
    counts = draw(probs.log().repeat(4000, 1), 1.0).token_ids.bincount(minlength=4)
    # 4000 draws: a standard deviation is below 0.008
    torch.testing.assert_close(counts / 4000, probs, rtol=0, atol=0.04)


def test_passes_opcheck(generator: torch.Generator) -> None:
    integers = torch.zeros(3, dtype=torch.int32)
    args = (
        torch.randn(3, 8, generator=generator),
        torch.ones(3),
        torch.arange(3),
        integers,
        integers,
        torch.ones(3),
        torch.zeros(3),
    )
    torch.library.opcheck(torch.ops.fastserve.sample.default, args)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": torch.zeros(2, 0)}, "logits must have at least one column"),
        ({"temperature": torch.ones(3)}, r"temperature must be contiguous float32 \[2\]"),
        ({"seed": torch.zeros(2, dtype=torch.int32)}, "seed must be contiguous int64"),
        ({"output_idx": torch.zeros(2)}, "output_idx must be contiguous int32"),
        ({"top_k": torch.zeros(2)}, "top_k must be contiguous int32"),
        ({"top_p": torch.ones(1)}, "top_p must be"),
        ({"min_p": torch.ones(2).double()}, "min_p must be"),
    ],
)
def test_a_bad_argument_is_named(changed: dict[str, torch.Tensor], message: str) -> None:
    good = {
        "logits": torch.zeros(2, 8),
        "temperature": torch.ones(2),
        "seed": torch.zeros(2, dtype=torch.int64),
        "output_idx": torch.zeros(2, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=message):
        fastserve.ops.sample(**{**good, **changed})
