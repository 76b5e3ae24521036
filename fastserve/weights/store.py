"""Finds the file of the model that a caller means."""

from __future__ import annotations

import os
from pathlib import Path

from fastserve.errors import ModelNotFoundError
from fastserve.weights.pull import pull
from fastserve.weights.registry import KNOWN_MODELS


def resolve_model(name_or_path: str | os.PathLike[str], *, offline: bool = False) -> Path:
    """The absolute path of a model's GGUF file: of a known name (pulled if absent), else of a file.

    Raises ModelNotFoundError.
    """
    text = os.fspath(name_or_path)
    if text in KNOWN_MODELS:
        return pull(text, offline=offline)
    path = Path(os.path.expanduser(text))
    if path.is_dir():
        raise ModelNotFoundError(f"{text} is a folder: give the path of the .gguf file in it")
    if path.exists():
        return path.absolute()
    if os.sep in text or path.suffix == ".gguf":
        raise ModelNotFoundError(f"there is no file {text}")
    return pull(text, offline=offline)  # refuses the name and lists those it knows
