from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.cli.main import main


def test_pull_prints_where_the_model_is(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "smollm2-135m", "--offline"]) == 0
    assert capsys.readouterr().out == f"{smollm2_path}\n"


def test_pull_offline_refuses_an_absent_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTSERVE_HOME", str(tmp_path))
    monkeypatch.setenv("FASTSERVE_OFFLINE", "1")
    assert main(["pull"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "offline forbids" in output.err
