"""A line alone says what was measured, where, against what and with which code."""

from __future__ import annotations

import json

import pytest

from fastserve.benchmark.machine import Machine
from fastserve.benchmark.report import Line, duration
from fastserve.benchmark.summary import Summary

MACHINE = Machine("Zen 4", 2, "avx512", "abc1234")
LINE = Line(
    machine=MACHINE,
    state="far",
    op="matmul",
    shape="M=1 N=576 K=1536",
    dtype="q4m",
    backend="avx512 2t",
    seconds=Summary(30e-6, 29e-6, 32e-6, 40),
    gbps=18.4,
    gops=59.2,
    roof_share=0.66,
    baseline="torch int4",
    ratio=2.5,
)


def test_line_stands_alone() -> None:
    assert str(LINE) == (
        "Zen 4 x2 | far | matmul | M=1 N=576 K=1536 | q4m | avx512 2t | 30 us +-5% n=40 | 18.4 GB/s | 59.2 GOP/s"
        " | roof 66% | 2.50x torch int4 | abc1234"
    )


def test_what_was_not_measured_is_shown_as_such() -> None:
    line = Line(
        machine=MACHINE,
        state="near",
        op="all_reduce",
        shape="4 KB",
        dtype="f32",
        backend="2 ranks",
        seconds=Summary(1e-6, 1e-6, 1e-6, 3),
    )
    assert str(line).endswith("| 1 us +-0% n=3 | - | - | roof - | - | abc1234")


def test_line_becomes_json() -> None:
    read = json.loads(json.dumps(LINE.as_dict()))
    assert read["machine"]["commit"] == "abc1234"
    assert read["seconds"]["median"] == 30e-6


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 us"), (3.1e-8, "31 ns")]
)
def test_durations_have_a_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text
