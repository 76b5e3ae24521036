"""bench/gpu.sh goes on after what fails: a Python stands in that does as told, and tells what it was asked to do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu.sh"
STEPS = ["environment", "build", "tests", "ops", "collectives", "model", "report"]

# Everything succeeds, but for the tests, and for the ops, which never end.
PYTHON = f"""#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case $* in
"-m venv "*) mkdir -p "${{@: -1}}/bin" && ln -s "$0" "${{@: -1}}/bin/python" ;;
"-c import sysconfig"*) dirname "$CALLS" ;;
"-c import torch; print"*) echo 2 ;;
"-c import sys; print("*) echo /its/site-packages ;;
"-c import os, sys; "*) echo /its/bin ;;
"-c import xdist"*) exit 1 ;;
"-m pytest "*) echo "2 != 3" && exit 1 ;;
"bench/gpu.py ops "*) sleep 100 ;;
*gpu_report*) exec {sys.executable} "$@" ;;
esac
"""


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, **environment},
    )


def test_a_dry_run_prints_every_step_and_its_limit(tmp_path: Path) -> None:
    done = run("--dry-run", "--work", str(tmp_path / "work"), FASTSERVE_PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    steps = [re.fullmatch(r"(\w+) \((\d+) s\): (.+)", line) for line in done.stdout.splitlines()]
    assert [step and step[1] for step in steps] == STEPS
    assert all("python" in step[3] for step in steps if step)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("args", "message"), [(["--fast"], "--fast is no option"), (["--out"], "--out needs a value")]
)
def test_a_wrong_option_is_named(args: list[str], message: str) -> None:
    done = run(*args)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_python_without_a_gpu_is_refused() -> None:
    done = run("--work", "build/none", FASTSERVE_PYTHON="/bin/false")
    assert done.returncode == 2
    assert "the torch of FASTSERVE_PYTHON=/bin/false sees no GPU" in done.stderr


@pytest.fixture
def python(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(PYTHON)
    path.chmod(0o755)
    return path


def test_what_fails_and_what_runs_out_of_time_is_told_and_the_rest_goes_on(
    tmp_path: Path, python: Path
) -> None:
    work, out, calls = tmp_path / "work", tmp_path / "out", tmp_path / "calls"
    args = ("--work", str(work), "--out", str(out), "--seconds", "24")
    done = run(*args, FASTSERVE_PYTHON=str(python), CALLS=str(calls))
    assert done.returncode == 1
    assert "these steps failed: tests ops collectives model" in done.stderr
    ended = [line.split("\t")[:2] for line in (work / "steps.tsv").read_text().splitlines()]
    statuses = {"tests": "1", "ops": "124", "collectives": "124", "model": "124"}
    assert ended == [[name, statuses.get(name, "0")] for name in STEPS]
    (page,) = out.glob("gpu-*.md")
    text = page.read_text()
    assert "| tests | with status 1 |" in text
    assert "| ops | out of time |" in text
    assert "2 != 3" in text
    assert "no time was left" in text
    assert "-m pip install --no-deps --no-build-isolation --editable ." in calls.read_text()
    assert (tmp_path / "base.pth").read_text() == "/its/site-packages\n"
