"""What is measured in turns, by name."""

from __future__ import annotations

from collections.abc import Callable

OURS = "fastserve"
Contestants = dict[str, Callable[[], object]]  # ours first, the baseline last
