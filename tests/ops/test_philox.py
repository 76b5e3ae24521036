from __future__ import annotations

import pytest
import torch

from fastserve.ops.philox import philox4x32_10, uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES), (ONES,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_words_are_those_of_the_known_answers(
    key: tuple[int, int], counter: tuple[int, int, int, int], words: tuple[int, ...]
) -> None:
    """The vectors that the authors publish with Random123."""
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox4x32_10(key, (c0, c1, c2, c3))) == words


def test_a_token_has_its_number_whatever_the_vocabulary() -> None:
    assert torch.equal(uniform(7, 3, 1000)[:130], uniform(7, 3, 130))


def test_numbers_differ_by_seed_and_by_output_index() -> None:
    draws = {tuple(uniform(seed, idx, 4).tolist()) for seed in (0, 1, 2**62) for idx in (0, 1)}
    assert len(draws) == 6
