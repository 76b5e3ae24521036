from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.errors import ModelNotFoundError
from fastserve.weights.home import fastserve_home


def test_the_home_is_the_variable_then_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("FASTSERVE_HOME", raising=False)
    assert fastserve_home() == Path("/users/me/.cache/fastserve")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/do/not/count")
    assert fastserve_home() == Path("/users/me/.cache/fastserve")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert fastserve_home() == Path("/caches/fastserve")
    monkeypatch.setenv("FASTSERVE_HOME", "~/models")
    assert fastserve_home() == Path("/users/me/models")
    monkeypatch.setenv("FASTSERVE_HOME", "relative")
    assert fastserve_home() == Path.cwd() / "relative"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FASTSERVE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ModelNotFoundError, match="set FASTSERVE_HOME"):
        fastserve_home()
