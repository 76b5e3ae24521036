"""What a step takes by its number of rows: learned from steps that ran, so that drafts are made where they pay.

A line through recent steps (least squares, older ones fade) says what rows cost in general. Single numbers of rows
deviate from it, where a matmul's next tile begins; what was measured at a number is trusted the more the more often and
the more recently it was.
"""

from __future__ import annotations

_FADE = 0.98  # per step: some 50 steps count, a fraction of a second
_FIRST_GUESS = 0.2  # of a step of one row, for each further row, until steps of different rows have been seen
_GUESS_WEIGHT = 0.5  # of that guess, in steps that are a row apart
_LINE_WEIGHT = 3.0  # of the line at any one number of rows, in measurements
_MAX_SURPRISE = 2.0  # a step that took longer than twice the expected met something else on the machine


class StepCosts:
    """In any unit of time: only ratios count."""

    def __init__(self) -> None:
        self._steps = 0
        self._weight = self._rows = self._time = 0.0  # faded sums, and means
        self._rows_rows = self._rows_time = 0.0  # faded sums of deviations
        self._measured: dict[int, tuple[float, float, int]] = {}  # rows -> weight, mean, at which step

    def observe(self, num_rows: int, time: float) -> None:
        if self._weight:
            time = min(time, _MAX_SURPRISE * self.of(num_rows))
        self._steps += 1
        self._weight = _FADE * self._weight + 1
        share = 1 / self._weight
        from_rows, from_time = num_rows - self._rows, time - self._time
        self._rows += share * from_rows
        self._time += share * from_time
        self._rows_rows = _FADE * self._rows_rows + (1 - share) * from_rows * from_rows
        self._rows_time = _FADE * self._rows_time + (1 - share) * from_rows * from_time
        weight, mean = self._at(num_rows)
        self._measured[num_rows] = weight + 1, mean + (time - mean) / (weight + 1), self._steps

    def of(self, num_rows: int) -> float:
        """What a step of so many rows is expected to take."""
        weight, mean = self._at(num_rows)
        line = self._line(num_rows)
        return line + (mean - line) * weight / (weight + _LINE_WEIGHT)

    def _at(self, num_rows: int) -> tuple[float, float]:
        weight, mean, step = self._measured.get(num_rows, (0.0, 0.0, 0))
        return weight * _FADE ** (self._steps - step), mean

    def _line(self, num_rows: int) -> float:
        if not self._weight:
            return 1 + _FIRST_GUESS * (num_rows - 1)
        per_row = _FIRST_GUESS * self._time / (1 + _FIRST_GUESS * (self._rows - 1))
        slope = (self._rows_time + _GUESS_WEIGHT * per_row) / (self._rows_rows + _GUESS_WEIGHT)
        # Rows are never for nothing, and a step is never shorter than its rows alone.
        slope = min(max(slope, 0.0), self._time / self._rows)
        return self._time + slope * (num_rows - self._rows)
