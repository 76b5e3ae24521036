"""Imports point down only, also inside functions; the core imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastserve"

# Each room and what it may import of ours. Leaves (config, request, step, errors) are open to all.
LEAVES = {"config", "request", "step", "errors"}
ALLOWED = {
    "config": set(),
    "request": set(),
    "step": set(),
    "errors": set(),
    "models": set(),
    "weights": {"_C"},
    "program": {"_C"},
    "ops": {"_C", "_cuda", "kernels", "distributed"},
    "cache": set(),
    "scheduler": {"cache"},
    "distributed": {"_C", "_cuda", "program", "models", "weights"},
    "cuda": {"_C", "_cuda", "distributed", "program", "models", "ops"},
    "worker": {"_C", "distributed", "program", "models", "weights"},
    "engine": {"_C", "scheduler", "cache", "worker", "weights"},
    "router": {"engine"},
    "llm": {"engine", "router"},
    "server": {"engine", "router"},
    "benchmark": {"_C", "ops", "llm", "engine", "distributed", "weights", "worker", "models", "testing"},
    "testing": {
        "_C",
        "cuda",
        "ops",
        "engine",
        "distributed",
        "weights",
        "worker",
        "models",
        "program",
        "llm",
    },
    "cli": {
        "_C",
        "llm",
        "server",
        "router",
        "engine",
        "weights",
        "worker",
        "distributed",
        "models",
        "benchmark",
    },
    "__init__": {"llm", "_C"},
    "__main__": {"cli"},
}
NO_NATIVE = ("cache", "scheduler")


def room_of(file: Path) -> str:
    relative = file.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative imports hide where an arrow points"
            yield node.module
            if node.module == "fastserve":
                yield from (f"fastserve.{alias.name}" for alias in node.names)


def source_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    room = room_of(file)
    allowed = ALLOWED[room] | LEAVES | {room}
    for module in imported_modules(file):
        parts = module.split(".")
        if parts[0] != "fastserve" or len(parts) == 1:
            continue
        assert parts[1] in allowed or parts[1].startswith("__"), f"{room} may not import {module}"


@pytest.mark.parametrize("room", NO_NATIVE)
def test_control_plane_imports_no_framework(room: str) -> None:
    for file in (PACKAGE / room).glob("*.py"):
        roots = {module.split(".")[0] for module in imported_modules(file)}
        assert not roots & {"torch", "numpy"}, file


CORE_MODULES = ["fastserve", "fastserve.cli.main", "fastserve.llm", "fastserve.server.app"]


@pytest.mark.parametrize("module", CORE_MODULES)
def test_core_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'triton')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
