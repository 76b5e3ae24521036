from __future__ import annotations

import pytest
import torch
from fastserve.kernels import sample as module
from fastserve.kernels.sample import choose_split, find_cuts, sample
from torch import Tensor

from fastserve.ops import Sampled, reference
from fastserve.ops.philox import uniform
from fastserve.ops.sample import _truncate

FILTERS: list[dict[str, float]] = [
    {},
    {"top_k": 5},
    {"top_p": 0.3},
    {"min_p": 0.2},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.01},
]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20249)


@pytest.fixture(autouse=True)
def several_blocks_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROW_BLOCK", 256)


def filled(num_rows: int, filters: dict[str, float]) -> dict[str, Tensor]:
    return {
        name: torch.full((num_rows,), value, dtype=torch.int32 if name == "top_k" else torch.float32)
        for name, value in filters.items()
    }


def outputs(num_rows: int) -> dict[str, Tensor]:
    return {
        "token_ids": torch.full((num_rows,), -7, dtype=torch.int32),
        "logprobs": torch.full((num_rows,), torch.nan),
        "ranks": torch.full((num_rows,), -7, dtype=torch.int32),
    }


def draw(
    logits: Tensor,
    temperature: float,
    filters: dict[str, float] | None = None,
    *,
    slow: bool = False,
    first: int = 0,
) -> Sampled:
    """Row s draws with a seed of 64 bits that follows from first + s, at output index 5 + s."""
    num_rows = len(logits)
    rows = first + torch.arange(num_rows)
    arguments = (
        torch.full((num_rows,), temperature),
        3 + rows * 0x9E3779B97F4A7C15 % 2**63,
        (5 + rows).int(),
    )
    options = filled(num_rows, filters or {})
    if slow:
        return reference.sample(logits.float(), *arguments, **options)
    written = outputs(num_rows)
    sample(logits, *arguments, **options, **written)
    return Sampled(**written)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1100)], ids=str)
def test_equals_the_reference(
    generator: torch.Generator, shape: tuple[int, int], filters: dict[str, float], temperature: float
) -> None:
    logits = 3 * torch.randn(shape[0], shape[1] + 3, generator=generator)[:, 1:-2]
    before = logits.clone()
    fast, slow = draw(logits, temperature, filters), draw(logits, temperature, filters, slow=True)
    assert torch.equal(fast.token_ids, slow.token_ids)
    assert torch.equal(fast.ranks, slow.ranks)
    torch.testing.assert_close(fast.logprobs, slow.logprobs, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_16_bits_are_taken_as_they_are(generator: torch.Generator, dtype: torch.dtype) -> None:
    logits = 3 * torch.randn(2, 700, generator=generator).to(dtype)  # many ties
    for temperature, filters in ((0.0, {}), (1.3, {"top_k": 200, "top_p": 0.8})):
        fast, slow = draw(logits, temperature, filters), draw(logits, temperature, filters, slow=True)
        assert torch.equal(fast.token_ids, slow.token_ids)
        assert torch.equal(fast.ranks, slow.ranks)
        torch.testing.assert_close(fast.logprobs, slow.logprobs, rtol=1e-6, atol=1e-6)


def test_many_draws_are_those_of_the_reference(generator: torch.Generator) -> None:
    logits = torch.randn(1, 900, generator=generator).repeat(25, 1)
    assert torch.equal(draw(logits, 1.0).token_ids, draw(logits, 1.0, slow=True).token_ids)


def test_a_close_race_is_won_by_the_exact_score() -> None:
    """Logits that cancel the noise: all scores are 1 to within an fp32's last places."""
    arguments = (torch.ones(8), torch.arange(8), torch.full((8,), 5, dtype=torch.int32))
    noise = torch.stack([-torch.log(-torch.log(uniform(seed, 5, 20))) for seed in range(8)])
    written = outputs(8)
    sample((1.0 - noise).float(), *arguments, **written)
    expected = reference.sample((1.0 - noise).float(), *arguments)
    assert torch.equal(written["token_ids"], expected.token_ids)


def test_ties_at_the_cut_go_to_the_lowest_ids() -> None:
    logits = torch.zeros(8, 3)
    logits[:, 1] = -0.0
    assert set(draw(logits, 1.0, {"top_k": 2}).token_ids.tolist()) == {0, 1}


def test_greedy_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(3, 3000)
    logits[0, [1030, 2080]] = 1.0
    logits[1, :20] = -0.0
    logits[2] = -torch.inf
    logits[2, 2999] = -1e30
    assert draw(logits, 0.0).token_ids.tolist() == [1030, 0, 2999]


@pytest.mark.parametrize("filters", [{}, {"top_k": 50}, {"top_p": 0.99}, {"min_p": 1e-9}], ids=str)
def test_a_banned_token_is_never_drawn(generator: torch.Generator, filters: dict[str, float]) -> None:
    logits = torch.full((3, 1200), -torch.inf)
    allowed = [3, 700, 1199]
    logits[:, allowed] = torch.randn(3, 3, generator=generator)
    fast, slow = draw(logits, 2.0, filters), draw(logits, 2.0, filters, slow=True)
    assert torch.equal(fast.token_ids, slow.token_ids)
    assert set(fast.token_ids.tolist()) <= set(allowed)
    torch.testing.assert_close(fast.logprobs, slow.logprobs, rtol=1e-6, atol=1e-6)


def test_a_row_is_the_same_alone_and_in_a_batch(generator: torch.Generator) -> None:
    logits = torch.randn(3, 1031, generator=generator)  # of odd length: rows are aligned differently
    filters = {"top_p": 0.9}
    whole = draw(logits, 1.0, filters)
    alone = draw(logits[1:2], 1.0, filters, first=1)
    assert all(torch.equal(part, all_rows[1:2]) for part, all_rows in zip(alone, whole, strict=True))


def test_rows_with_and_without_filters_share_a_batch(generator: torch.Generator) -> None:
    logits = 3 * torch.randn(5, 300, generator=generator)
    arguments = (torch.tensor([0.8, 0.0, 0.8, 0.8, 0.8]), torch.arange(5), torch.arange(5).int())
    options = {
        "top_k": torch.tensor([0, 3, 3, 0, 1000], dtype=torch.int32),
        "top_p": torch.tensor([1.0, 0.5, 1.0, 0.5, 1.0]),
        "min_p": torch.tensor([0.0, 0.5, 0.0, 0.0, 0.3]),
    }
    written = outputs(5)
    sample(logits, *arguments, **options, **written)
    assert torch.equal(written["token_ids"], reference.sample(logits, *arguments, **options).token_ids)


def stays(x: Tensor, key: int, end: int) -> Tensor:
    """Which tokens of a row [V] of logits a cut leaves."""
    bits = (x + 0.0).view(torch.int32)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (keys > key) | ((keys == key) & (torch.arange(len(x)) < end))


def distributions(generator: torch.Generator) -> dict[str, Tensor]:
    noise = torch.randn(600, generator=generator)
    return {
        "bell": 3 * noise,
        "flat": 1000 + 0.01 * noise,
        "peaked": 100 * noise,
        "ties": (2 * noise).round(),  # zeros of both signs too
        "banned": torch.where(noise > 0.5, noise, -torch.inf),
    }


CUTS = [
    {"top_k": 50},
    {"top_k": 300},
    {"top_p": 0.95},
    {"min_p": 0.03},
    {"top_k": 50, "top_p": 0.6, "min_p": 0.001},
]


@pytest.mark.parametrize(
    ("filters", "list_size"),
    [*((filters, 8192) for filters in CUTS), ({"top_k": 599}, 9), (CUTS[2], 9)],
    ids=str,
)
def test_cuts_leave_what_the_reference_leaves(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator, filters: dict[str, float], list_size: int
) -> None:
    """With a short list, the row itself is bisected first."""
    monkeypatch.setattr(module, "LIST_SIZE", list_size)
    rows = distributions(generator)
    logits, temperature = torch.stack(list(rows.values())), torch.full((len(rows),), 0.9)
    options = {"top_k": None, "top_p": None, "min_p": None} | filled(len(rows), filters)
    keys, ends = find_cuts(logits, temperature, **options, split=512)
    exact = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | {
        name: value[0].item() for name, value in filled(1, filters).items()
    }
    for name, x, key, end in zip(rows, logits / 0.9, keys.tolist(), ends.tolist(), strict=True):
        likely = x.double().softmax(0) > 1e-14  # the reference loses others where sums round to 1
        assert torch.equal(stays(x, key, end)[likely], _truncate(x, **exact)[likely]), name


def test_splits_follow_from_the_vocabulary() -> None:
    sizes = (1, 1024, 32000, 128256, 262144, 1 << 20)
    assert [choose_split(size) for size in sizes] == [1024, 1024, 1024, 2048, 4096, 4096]


def test_no_rows_launch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in ("draw", "pick", "count_larger"):
        monkeypatch.setattr(module, kernel, None)
    assert len(draw(torch.zeros(0, 9), 1.0).token_ids) == 0
