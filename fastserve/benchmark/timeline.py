"""Where the time of a step goes: what a program's timeline says, op by op, against the machine's roofs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from fastserve import _C
from fastserve.benchmark.report import duration
from fastserve.benchmark.roofs import ARITHMETIC, Arithmetic, Roofs, Work

Phase = Literal["prefill", "decode"]
BETWEEN = "between ops"  # barriers, and what the loop itself takes


@dataclass(frozen=True, slots=True)
class OpSpan:
    """One op of one pass. Times in seconds of the monotonic clock."""

    op: str
    shape: str
    work: Work
    threads: tuple[tuple[float, float], ...]  # when each began and ended

    @property
    def begin(self) -> float:
        return min(begin for begin, _ in self.threads)

    @property
    def end(self) -> float:
        return max(end for _, end in self.threads)

    @property
    def waited(self) -> float:
        """Seconds that a thread, on average, had nothing to do between the op's begin and end."""
        busy = sum(end - begin for begin, end in self.threads)
        return self.end - self.begin - busy / len(self.threads)


@dataclass(frozen=True, slots=True)
class Pass:
    """One replay of the program, without ops that had no rows."""

    num_tokens: int
    num_samples: int
    num_barriers: int  # for which all threads wait
    spans: tuple[OpSpan, ...]

    @property
    def phase(self) -> Phase:
        """decode: a token of each sequence, and nothing else."""
        return "decode" if self.num_tokens == self.num_samples else "prefill"

    @property
    def seconds(self) -> float:
        return self.spans[-1].end - self.spans[0].begin


def take_passes(program: _C.Program) -> list[Pass]:
    """What ran since the last time. Raises ValueError if the program records no timeline."""
    taken = program.take_passes()
    if taken is None:
        raise ValueError("the program records no timeline: call record_timeline first")
    ops = program.ops
    return [
        Pass(num_tokens, num_samples, num_barriers, tuple(_spans(ops, costs, spans)))
        for num_tokens, num_samples, num_barriers, costs, spans in taken
    ]


def _spans(
    ops: Sequence[tuple[str, str, str]],
    costs: Sequence[tuple[int, int]],
    spans: Sequence[Sequence[tuple[int, int]]],
) -> Iterator[OpSpan]:
    for (op, shape, arithmetic), (num_bytes, num_operations), threads in zip(ops, costs, spans, strict=True):
        if any(end for _, end in threads):
            work = Work(num_bytes, num_operations, _arithmetic(arithmetic))
            yield OpSpan(op, shape, work, tuple((begin / 1e9, end / 1e9) for begin, end in threads))


def _arithmetic(name: str) -> Arithmetic:
    if name not in ARITHMETIC:
        raise ValueError(f"unknown arithmetic {name!r}")
    return name


@dataclass(frozen=True, slots=True)
class OpLine:
    """All calls of one op and shape in a step; medians over the steps."""

    op: str
    shape: str
    calls: int  # of a step
    seconds: float  # of them together
    waited: float  # share of it in which a thread had nothing to do
    gbps: float
    gops: float
    roof_share: float


def summarise(passes: Sequence[Pass], roofs: Roofs) -> tuple[list[OpLine], float, float]:
    """Lines, the longest first; then the seconds of a step, and those between its ops.

    passes: of one kind. Raises ValueError if there are none.
    """
    if not passes:
        raise ValueError("there is no pass to summarise")
    kinds = dict.fromkeys((span.op, span.shape) for one in passes for span in one.spans)
    lines = sorted((_line(kind, passes, roofs) for kind in kinds), key=lambda line: -line.seconds)
    return (
        lines,
        median(one.seconds for one in passes),
        median(one.seconds - sum(span.end - span.begin for span in one.spans) for one in passes),
    )


def _line(kind: tuple[str, str], passes: Sequence[Pass], roofs: Roofs) -> OpLine:
    of_passes = [[span for span in one.spans if (span.op, span.shape) == kind] for one in passes]
    calls = [spans for spans in of_passes if spans]  # a step that draws nothing lacks some ops
    seconds = [sum(span.end - span.begin for span in spans) for spans in calls]
    waited = median(sum(span.waited for span in spans) for spans in calls)

    def rate(amount: Callable[[OpSpan], float]) -> float:
        """Each pass by its own time: the pieces of a long prompt see more and more keys."""
        return median(sum(map(amount, spans)) / took for spans, took in zip(calls, seconds, strict=True))

    return OpLine(
        op=kind[0],
        shape=kind[1],
        calls=len(calls[-1]),
        seconds=median(seconds),
        waited=waited / median(seconds),
        gbps=rate(lambda span: span.work.num_bytes) / 1e9,
        gops=rate(lambda span: span.work.num_operations) / 1e9,
        roof_share=rate(lambda span: roofs.seconds(span.work)),
    )


def table(passes: Sequence[Pass], roofs: Roofs) -> str:
    """For people."""
    lines, seconds, between = summarise(passes, roofs)
    rows = [("op", "shape", "calls", "time", "share", "waits", "GB/s", "GOP/s", "of the roof")]
    for line in lines:
        rows.append(
            (
                line.op,
                line.shape,
                str(line.calls),
                duration(line.seconds),
                f"{line.seconds / seconds:.1%}",
                f"{line.waited:.0%}",
                f"{line.gbps:.1f}",
                f"{line.gops:.1f}",
                f"{line.roof_share:.0%}",
            )
        )
    rows.append(
        (
            BETWEEN,
            f"{passes[-1].num_barriers} barriers",
            "",
            duration(between),
            f"{between / seconds:.1%}",
            "",
            "",
            "",
            "",
        )
    )
    rows.append(("step", "", "", duration(seconds), "", "", "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def write_trace(passes: Iterable[Pass], path: Path) -> None:
    """In the JSON that Perfetto and Chrome's tracing read: a track for each thread."""
    events: list[dict[str, object]] = []
    for one in passes:
        for span in one.spans:
            for thread, (begin, end) in enumerate(span.threads):
                events.append(
                    {
                        "name": span.op,
                        "cat": one.phase,
                        "ph": "X",
                        "ts": begin * 1e6,
                        "dur": (end - begin) * 1e6,
                        "pid": 0,
                        "tid": thread,
                        "args": {
                            "shape": span.shape,
                            "bytes": span.work.num_bytes,
                            "operations": span.work.num_operations,
                            "tokens": one.num_tokens,
                        },
                    }
                )
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))
