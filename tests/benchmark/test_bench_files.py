"""The benchmark files run: a small case of each, with the options of pytest-benchmark and ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastserve.benchmark.run_file import read_run

BENCH = Path(__file__).parents[2] / "bench"
CASES = {"ops.py": "test_norm and rms_norm and 1-576", "collectives.py": "all_reduce-f32-4_KB"}


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_measured_and_reported(name: str, tmp_path: Path) -> None:
    numbers, lines = tmp_path / "numbers.json", tmp_path / "lines.json"
    command = [
        *(
            sys.executable,
            "-m",
            "pytest",
            str(BENCH / name),
            "-k",
            CASES[name],
            "--turns",
            "3",
            "--batch-ms",
            "0.1",
        ),
        *("--benchmark-json", str(numbers), "--lines-json", str(lines)),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=200, cwd=BENCH.parent, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(numbers.read_text())["benchmarks"]
    assert measured
    assert all(benchmark["stats"]["median"] > 0 for benchmark in measured)
    found = read_run(lines).lines
    assert [line for benchmark in measured for line in benchmark["extra_info"]["lines"]] == found
    for line in found:
        assert f"| {line['state']} | {line['op']} | {line['shape']} | {line['dtype']} |" in done.stdout
