from __future__ import annotations

import pytest

from fastserve.ops.backend import VARIABLE

from .place import Place


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The parameter, with its backend forced."""
    place: Place = request.param
    if place.backend is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, place.backend)
    return place
