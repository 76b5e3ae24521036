from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.testing.convert import convert


@pytest.fixture(scope="session")
def short_model(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two layers of a real model: all ops, in a fifteenth of the time."""
    return convert(smollm2_path, tmp_path_factory.mktemp("models") / "short.gguf", "Q8_0", num_layers=2)
