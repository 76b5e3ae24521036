"""How many rows of prompts join a step in which others decode: as many as keep the step within a time.

What a row takes is learned from steps that held prompts, decodes' rows among them: from some 16 rows on products
decide, and rows cost alike. A decode alone is never more than halved in speed by it, so a large model, of which one
row lasts longer than the time allowed, goes on with prompts all the same.
"""

from __future__ import annotations

from fastserve.step import NO_LIMIT, Step, StepResult

TILE_ROWS = 8  # of a matmul on AVX-512: a step of 45 rows takes as long as one of 48
MIN_ROWS = 16  # the weights are read once for all of them: fewer would not be done much sooner
_FADE = 0.8  # per step: what a row takes follows the context that prompts have reached


class PromptPace:
    def __init__(self, max_step_ms: float) -> None:
        """max_step_ms: infinite, and prompts take all that the step has room for."""
        self._max_step_us = max_step_ms * 1e3
        self._rows = self._time_us = 0.0  # faded sums

    def observe_step(self, step: Step, result: StepResult) -> None:
        if step.chunks:
            self._rows = _FADE * self._rows + step.num_tokens + result.num_drafts
            self._time_us = _FADE * self._time_us + result.elapsed_us

    def num_rows(self, num_decode_rows: int) -> int:
        """Of prompts, beside so many rows of decodes, of which there is at least one."""
        at_least = max(num_decode_rows, MIN_ROWS)
        if not self._time_us:  # the first prompt ran alone, and is still under way
            return at_least
        fitting = min(self._max_step_us * self._rows / self._time_us, NO_LIMIT)
        return max(int(fitting) // TILE_ROWS * TILE_ROWS - num_decode_rows, at_least)
