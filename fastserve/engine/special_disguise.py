"""Hides control tokens that a user has spelled out from the search for those that a template has written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# CJK extension G: printable, so that repr() leaves them alone, and neither space, case nor part of any token.
STAND_INS = range(0x30000, 0x31300)


class SpecialDisguise:
    """Keeps control tokens spelled in messages from being taken for real ones.

    Raises ValueError if the texts leave no stand-in free.
    """

    def __init__(self, special_texts: Sequence[str], texts: Iterable[str]) -> None:
        """`texts` are all in which stand-ins will be looked for."""
        self._special = special_texts
        self._starts = re.compile("|".join(f"(?={re.escape(text)})" for text in special_texts) or "(?!)")
        self._heads = {text[:i] for text in special_texts for i in range(1, len(text))}
        self._tails = {text[i:] for text in special_texts for i in range(1, len(text))}
        self._max_length = max(map(len, special_texts), default=0)
        used = set().union(*texts)
        self._free = (chr(code) for code in STAND_INS if chr(code) not in used)
        self._stand_in: dict[str, str] = {}

    def hide(self, key: str, text: str) -> str:
        """`text` unable to spell a control token, alone or with what a template may write next to it."""
        if key == "role":  # one of ROLES: a template may build its control tokens out of it
            return text
        positions = {match.start() for match in self._starts.finditer(text)} | self._edges(text)
        if not positions:
            return text
        characters = list(text)
        for at in positions:
            characters[at] = self._stand_in_for(characters[at])
        return "".join(characters)

    def show(self, text: str) -> str:
        """`text` as it was before hiding."""
        return text.translate({ord(fake): char for char, fake in self._stand_in.items()})

    def _edges(self, text: str) -> set[int]:
        """Where, at either end, `text` could be part of a control token that begins or ends outside of it."""
        core = text.strip()
        if not core:
            return set()
        start = text.index(core[0])
        end = start + len(core)
        lengths = range(1, min(self._max_length, len(core)) + 1)
        edges = {end - length for length in lengths if core[-length:] in self._heads}
        if any(core[:length] in self._tails for length in lengths) or self._is_inside_one(core):
            edges.add(start)
        return edges

    def _is_inside_one(self, core: str) -> bool:
        return len(core) < self._max_length and any(core in text[1:] for text in self._special)

    def _stand_in_for(self, char: str) -> str:
        if char not in self._stand_in:
            free = next(self._free, None)
            if free is None:
                raise ValueError(
                    f"messages must not use all of the {len(STAND_INS)} characters from U+30000 on"
                )
            self._stand_in[char] = free
        return self._stand_in[char]
