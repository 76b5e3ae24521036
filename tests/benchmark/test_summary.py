"""Percentiles interpolate between neighbours; the spread is half the distance of the quartiles."""

from __future__ import annotations

import pytest

from fastserve.benchmark.summary import Summary, percentile


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (25, 2.0), (50, 3.0), (99, 4.96), (100, 5.0)])
def test_percentile_lies_between_its_neighbours(percent: float, value: float) -> None:
    assert percentile([5.0, 3.0, 1.0, 4.0, 2.0], percent) == pytest.approx(value)


def test_percentile_of_one_value_is_the_value() -> None:
    assert percentile([7.0], 99) == 7.0


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="values must hold at least one"):
        percentile([], 50)


@pytest.mark.parametrize("percent", [-1, 101])
def test_percentile_outside_the_hundred_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match=r"percent must be in \[0, 100\]"):
        percentile([1.0], percent)


def test_summary_holds_quartiles() -> None:
    found = Summary.of([4.0, 2.0, 3.0, 1.0, 5.0])
    assert found == Summary(median=3.0, low=2.0, high=4.0, count=5)
    assert found.spread == pytest.approx(1 / 3)
