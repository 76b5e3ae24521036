"""The page holds every line, and the picture is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastserve.benchmark.cpu_report import write_report
from fastserve.benchmark.machine import Machine
from fastserve.benchmark.placement import Placement
from fastserve.benchmark.report import Line
from fastserve.benchmark.roofs import Roofs
from fastserve.benchmark.run_file import read_run, write_run
from fastserve.benchmark.summary import Summary

ROOT = Path(__file__).parents[2]
MACHINE = Machine("Zen", 2, "avx512", "abc1234")
ROOFS = Roofs("avx512", 2, 20.0, {"f32": 200.0, "bf16": 400.0, "int8": 800.0}, Placement("near", 57.0))


def line(backend: str, seconds: float, **more: object) -> Line:
    summary = Summary(seconds, 0.9 * seconds, 1.1 * seconds, 5)
    return Line(
        machine=MACHINE,
        state="near",
        op="matmul",
        shape="M=1",
        dtype="q8",
        backend=backend,
        seconds=summary,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    ours = line("fastserve 2t", 1e-3, gbps=16.0, gops=32.0, roof_share=0.8, baseline="torch 2t", ratio=2.0)
    path = tmp_path / "run.json"
    write_run(path, [ours, line("torch 2t", 2e-3, gbps=8.0, gops=16.0, roof_share=0.4)], ROOFS)
    return path


def test_every_line_is_a_row_and_the_picture_is_a_png(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "results" / "zen.md"
    picture = write_report([run], page)
    text = page.read_text()
    assert (
        "| matmul | M=1 | q8 | near | fastserve 2t | 1 ms +-10% | 16 | 32 | 80% | 2.00 x torch 2t |" in text
    )
    assert "| matmul | M=1 | q8 | near | torch 2t | 2 ms +-10% | 8 | 16 | 40% | - |" in text
    assert "read 20.0 GB/s; f32 200 GOP/s, bf16 400 GOP/s, int8 800 GOP/s" in text
    assert picture == page.with_suffix(".png")
    assert f"({picture.name})" in text
    assert text.count("abc1234") == 1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_runs_without_roofs_have_a_page_too(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_run(path, [line("fastserve", 1e-3)], None)
    assert read_run(path).roofs is None
    write_report([path], tmp_path / "page.md")
    assert "| fastserve | 1 ms +-10% | - | - | - | - |" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [("nonsense", "not a benchmark's file"), ("[]", "not a benchmark's file"), (None, "No such file")],
)
def test_other_files_are_one_line_of_error(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    command = [
        sys.executable,
        str(ROOT / "bench" / "report.py"),
        str(path),
        "--out",
        str(tmp_path / "page.md"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_without_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_run(path, [], None)
    with pytest.raises(ValueError, match="no line in"):
        write_report([path], tmp_path / "page.md")
