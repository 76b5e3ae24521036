from __future__ import annotations

import importlib

import pytest

from fastserve.benchmark import gpu_cases, gpu_collectives, gpu_lines, gpu_peers, gpu_theory, op_calls
from fastserve.ops import kv_cache, packed_weight

from .fake_gpu import SIZES, SWAP_BYTES


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases of a small model, laid out as for a GPU; ours are the references, and nothing is compiled."""
    for module in (gpu_theory, gpu_cases, gpu_collectives):
        for name, value in SIZES.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(gpu_cases, "SWAP_BYTES", SWAP_BYTES)
    monkeypatch.setattr(gpu_lines, "gpu_backends", lambda *_: ["reference"])
    monkeypatch.setattr(gpu_peers, "_compiled", lambda function: function)
    matmul = importlib.import_module("fastserve.ops.matmul")  # fastserve.ops.matmul is the op
    for module in (kv_cache, matmul, op_calls, packed_weight):
        monkeypatch.setattr(module, "lays_rows", lambda _: True)
    monkeypatch.setenv("FASTSERVE_BACKEND", "reference")
