"""The machine's name comes from the kernel, the code's from its checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fastserve.benchmark.machine import commit, cpu_name


def test_cpu_is_named_with_family_and_model(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n"
    )
    assert cpu_name(info) == "AMD EPYC (family 25 model 17)"


def test_cpu_of_a_kernel_that_tells_nothing_is_unknown(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "missing") == "unknown CPU"


def test_commit_tells_whether_files_were_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert commit(tmp_path) == "unknown"
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    head = git("rev-parse", "--short", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == head + "+"
