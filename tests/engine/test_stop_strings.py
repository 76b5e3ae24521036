"""A stop string ends the text where its last character comes, however cut, and is never half shown."""

from __future__ import annotations

import random

import pytest

from fastserve.engine.stop_strings import StopStrings


def run(stop: list[str], pieces: list[str], *, include_stop: bool = False) -> tuple[list[str], str | None]:
    watch = StopStrings(stop, include_stop=include_stop)
    shown = [watch.push(piece) for piece in pieces]
    return [*shown, watch.flush()], watch.matched


def reference(stop: list[str], text: str, *, include_stop: bool) -> tuple[str, str | None]:
    """One character after another, looking at all of the text each time."""
    for end in range(1, len(text) + 1):
        matches = [s for s in stop if text[:end].endswith(s)]
        if matches:
            longest = max(matches, key=len)
            return text[: end if include_stop else end - len(longest)], longest
    return text, None


def test_without_stop_strings_everything_is_shown_at_once() -> None:
    assert run([], ["a", "bc"]) == (["a", "bc", ""], None)


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    assert run(["STOP"], ["go S", "T", "ART", " STOP now", "more"]) == (
        ["go ", "", "START", " ", "", ""],
        "STOP",
    )


def test_held_text_is_shown_when_no_more_comes() -> None:
    assert run(["STOP"], ["a STO"]) == (["a ", "STO"], None)


def test_stop_string_is_kept_if_asked_for() -> None:
    assert run(["\n\n"], ["a\n", "\nb"], include_stop=True) == (["a", "\n\n", ""], "\n\n")


@pytest.mark.parametrize(
    ("stop", "text", "shown", "matched"),
    [
        (["b", "abc"], "xabc", "xa", "b"),  # b is complete first
        (["bc", "abc"], "xabc", "x", "abc"),  # both at once: the longer
        (["aab"], "aaab", "a", "aab"),  # a start within a start
        (["end", "x"], "the end x", "the ", "end"),
    ],
)
def test_the_stop_string_completed_first_wins(stop: list[str], text: str, shown: str, matched: str) -> None:
    for pieces in ([text], list(text)):
        parts, found = run(stop, pieces)
        assert ("".join(parts), found) == (shown, matched)


@pytest.mark.parametrize("include_stop", [True, False])
def test_any_cutting_gives_what_one_character_at_a_time_gives(include_stop: bool) -> None:
    draw = random.Random(9)
    num_matched = 0
    for _ in range(2000):
        stop = ["".join(draw.choices("ab", k=draw.randint(1, 6))) for _ in range(draw.randint(1, 3))]
        text = "".join(draw.choices("abc", k=draw.randint(0, 30)))
        cuts = sorted(draw.choices(range(len(text) + 1), k=4))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        parts, matched = run(stop, pieces, include_stop=include_stop)
        assert ("".join(parts), matched) == reference(stop, text, include_stop=include_stop)
        num_matched += matched is not None
    assert 500 < num_matched < 2000


def test_empty_stop_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="stop strings must not be empty"):
        StopStrings(["a", ""], include_stop=False)
