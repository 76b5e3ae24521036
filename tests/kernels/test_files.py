"""A kernel's file stands alone: it can be read, copied and compiled without anything else of ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fastserve.ops.registry import NAMES

KERNELS = Path(__file__).parents[2] / "kernels"
FILES = sorted(path for path in KERNELS.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_kernel_is_an_op_and_imports_nothing_of_ours(path: Path) -> None:
    assert path.stem in NAMES
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or "."] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert imported <= {"__future__", "collections", "dataclasses", "math", "typing", "torch", "triton"}
