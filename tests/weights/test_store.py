from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.config import DEFAULT_MODEL
from fastserve.errors import ModelNotFoundError
from fastserve.weights.registry import KNOWN_MODELS
from fastserve.weights.store import resolve_model


def test_the_default_model_is_known() -> None:
    assert DEFAULT_MODEL in KNOWN_MODELS
    assert all(name == model.name for name, model in KNOWN_MODELS.items())


def test_a_path_leads_to_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").touch()
    (tmp_path / "named_otherwise").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("weights.gguf", tmp_path / "weights.gguf", "~/weights.gguf"):
        assert resolve_model(given, offline=True) == tmp_path / "weights.gguf"
    assert resolve_model("named_otherwise") == tmp_path / "named_otherwise"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("absent.gguf", r"there is no file absent\.gguf"),
        ("folder/absent", "there is no file folder/absent"),
        (".", "is a folder"),
        ("absent", r"unknown model 'absent'; known: smollm2-135m; a path to a \.gguf file works too"),
        ("", "is a folder|unknown model ''"),
        ("nul\0", "unknown model"),
    ],
)
def test_what_leads_nowhere_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=words):
        resolve_model(given)


def test_a_known_name_is_offline_refused_when_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTSERVE_HOME", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="offline forbids"):
        resolve_model(DEFAULT_MODEL, offline=True)
