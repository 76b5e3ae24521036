"""`fastserve bench` on a small model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fastserve.cli.main import main

SMALL = ["--prompts", "20,30", "--context", "8", "--new-tokens", "4", "--rounds", "1", "--batches", "1,3"]


def test_rates_the_profile_and_the_trace(
    short_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.json"
    assert main(["bench", str(short_model), *SMALL, "--profile", "--trace", str(trace)]) == 0
    out = capsys.readouterr().out
    for phase in ("prefill, 20 tokens", "prefill, 30 tokens", "decode, 1 together", "decode, 3 together"):
        (line,) = (line for line in out.splitlines() if line.startswith(phase))
        assert float(line.split(": ")[1].split()[0]) > 0
        assert ("scheduling" in line) == phase.startswith("decode")
    assert out.count("paged_attention") == 4
    assert out.count("between ops") == 4
    assert {event["cat"] for event in json.loads(trace.read_text())["traceEvents"]} == {"prefill", "decode"}


def test_drafts_the_start_and_clients(short_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--figures", "drafts,start,http", "--rounds", "1", "--num-threads", "1"]
    assert main(["bench", str(short_model), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    begins = ("drafts, code: ", "drafts, prose: ", "start to first token: ", "HTTP, 16 closed loops")
    for begin in (*begins, "HTTP, Poisson at half"):
        (line,) = (line for line in lines if line.startswith(begin))
        assert any(float(number) > 0 for number in re.findall(r"[0-9]+\.[0-9]+", line)), line
    assert not any(line.startswith("decode") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["--figures", "decode,speed"],
            "--figures must be of prefill, decode, drafts, start, http, or all; got",
        ),
        (["--prompts", "1"], "--prompts must be at least 2, got 1"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--batches", "1,x"], "--batches must be numbers above zero with commas between, got '1,x'"),
        (
            ["--batches", "64", "--context", "128", "--new-tokens", "9"],
            "--new-tokens must be at least 22 for 64 sequences of 128 tokens to decode together, got 9",
        ),
        (["--batches", "0"], "--batches must be numbers above zero with commas between, got '0'"),
        (["--new-tokens", "2"], "--new-tokens must be at least 3, got 2"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], error: str, short_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(short_model), *arguments]) == 2
    assert error in capsys.readouterr().err
