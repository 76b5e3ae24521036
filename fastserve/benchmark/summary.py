"""Order statistics of repeated measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest values. Raises ValueError without values or outside [0, 100]."""
    if not values:
        raise ValueError("values must hold at least one, got none")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must be in [0, 100], got {percent}")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class Summary:
    """The middle of the values, and how far the middle half of them lies apart."""

    median: float
    low: float  # 25th percentile
    high: float  # 75th percentile
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Raises ValueError without values."""
        low, median, high = (percentile(values, percent) for percent in (25, 50, 75))
        return cls(median, low, high, len(values))

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median: 0.05 reads +-5 %."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0
