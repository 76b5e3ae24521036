"""Whether the native extension is there; if not, one line says what to do."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import fastserve
from fastserve.errors import FastServeError


class InstallError(FastServeError):
    """FastServe is not installed as it should be."""


def require_native() -> ModuleType:
    """fastserve._C. Raises InstallError."""
    folder = Path(fastserve.__file__).parent
    try:
        return import_module("fastserve._C")
    except ImportError as error:
        raise InstallError(_what_to_do(folder, error)) from None


def _what_to_do(folder: Path, error: ImportError) -> str:
    if any(folder.glob("_C.*.so")):
        return f"the native extension in {folder} does not load ({error}): install FastServe again"
    if (folder.parent / "CMakeLists.txt").is_file():
        return (
            f"{folder} is a source folder without the native extension: run `pip install -e .` in {folder.parent}, "
            "or leave that folder to use the installed FastServe"
        )
    return f"{folder} lacks the native extension: install FastServe again"
