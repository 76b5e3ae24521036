"""What is measured in turns, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

OURS = "fastserve"


@dataclass(frozen=True, slots=True)
class Repeated:
    """Makes its calls natively, where one takes no longer than Python takes to make it."""

    repeat: Callable[[int], object]  # so many times

    def __call__(self) -> None:
        self.repeat(1)


def repeat(call: Callable[[], object], calls: int) -> None:
    if isinstance(call, Repeated):
        call.repeat(calls)
        return
    for _ in range(calls):
        call()


Contestants = dict[str, Callable[[], object]]  # ours first, the baseline last
