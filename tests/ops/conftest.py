"""Random operands, and every ISA that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastserve import _C

ISAS = [name for name, supported, _ in _C.isas() if supported]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per ISA."""
    _C.ops.use_isa(request.param)
    yield request.param
    _C.ops.use_isa("")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20241)
