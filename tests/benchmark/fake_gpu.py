"""A GPU's clock that tests set, and a model so small that a CPU runs the cases of a GPU."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastserve.benchmark.gpu_lines import Device
from fastserve.benchmark.gpu_theory import Gpu, Model
from fastserve.benchmark.gpu_timer import Run

MODEL = Model(hidden=64, intermediate=64, heads=4, kv_heads=2, head_dim=16, vocabulary=100)
SIZES = {"MODEL": MODEL, "DECODE_ROWS": 2, "PREFILL_ROWS": 20, "CONTEXT": 18}
SWAP_BYTES = 1 << 16
DEVICE = Device("a GPU", 1, "sm_0", 1 << 10, Gpu("measured", 1.0, 100, 100, 10), "abc1234")


class Lines(io.StringIO):
    """A step's file."""

    name = "lines.jsonl"

    def read_all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@dataclass
class FakeClock:
    """Every run takes what `work` adds to `now`; a recorded one runs at each replay, as it does on a CPU."""

    now: float = 0.0
    per_run_s: float = 1.0
    num_recorded: int = 0
    recording: bool = field(default=False, repr=False)

    def recorded(self, run: Run) -> Run:
        self.num_recorded += 1
        with self._while_recording():
            run()
        return run

    @contextmanager
    def _while_recording(self) -> Iterator[None]:
        self.recording = True
        yield
        self.recording = False

    def seconds(self, run: Run) -> float:
        before = self.now
        run()
        self.now += self.per_run_s
        return self.now - before
