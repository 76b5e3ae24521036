"""Ending a text at a string that the caller named, without ever showing a part of it."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches a text that arrives in pieces for the first stop string to be completed.

    push(text)  what may be shown now: all but a tail that may be the start of a stop string
    flush()     the tail, when no more text comes
    matched     the stop string that ended the text, or None

    Of several, the one whose last character comes first wins, and the longer where two end together: so the
    outcome doesn't depend on how the text was cut into pieces. After a match nothing more is shown.
    Raises ValueError for an empty stop string.
    """

    def __init__(self, stop: Sequence[str], *, include_stop: bool) -> None:
        if not all(stop):
            raise ValueError(f"stop strings must not be empty, got {list(stop)!r}")
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        if self.matched is not None:
            return ""
        text = self._held + text
        ends = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            end, start, self.matched = min(ends)
            self._held = ""
            return text[: end if self._include_stop else start]
        held_from = min((_possible_start(text, stop) for stop in self._stop), default=len(text))
        self._held = text[held_from:]
        return text[:held_from]

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text


def _possible_start(text: str, stop: str) -> int:
    """Where the longest tail of `text` begins that is a start of `stop`; len(text) if none is."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return at
        at = text.find(stop[0], at + 1)
    return len(text)
