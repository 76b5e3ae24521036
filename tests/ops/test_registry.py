from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastserve.ops
from fastserve import _C
from fastserve.ops import reference, registry

MUTATES = {
    "add_rms_norm": ("residual",),
    "rotary": ("q", "k"),
    "store_kv": ("k_cache", "v_cache"),
    "all_reduce": ("x",),
    "all_reduce_add_rms_norm": ("residual",),
    "matmul_all_reduce_add_rms_norm": ("residual",),
    "swap": ("target",),
}
IN_CUDA = {
    "add_rms_norm",
    "matmul",
    "all_reduce",
    "all_reduce_add_rms_norm",
    "matmul_all_reduce",
    "matmul_all_reduce_add_rms_norm",
    "swap",
}
NOT_IN_TRITON = {"all_reduce", "all_reduce_add_rms_norm", "swap"}


@pytest.mark.parametrize("name", registry.NAMES)
def test_an_op_has_its_file_its_contract_its_reference_and_its_registration(name: str) -> None:
    assert Path(fastserve.ops.__file__).with_name(f"{name}.py").exists()
    assert len(getattr(fastserve.ops, name).__doc__) > 40
    assert callable(getattr(reference, name))
    assert isinstance(registry.overload(name), torch._ops.OpOverload)


def test_the_table_says_what_is_mutated_and_which_backends_there_are() -> None:
    rows = {row.name: row for row in registry.table()}
    assert set(rows) == set(registry.NAMES)
    for name, row in rows.items():
        assert row.mutates == MUTATES.get(name, ())
        assert row.backends[:2] == ("reference", "cpu")
        assert ("cuda" in row.backends) == (name in IN_CUDA)
        assert ("triton" in row.backends) == (name not in NOT_IN_TRITON)


def test_the_table_is_printed() -> None:
    command = [sys.executable, "-m", "fastserve.ops"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].split() == ["op", "mutates", "reference", "cpu", "cuda", "triton"]
    empty = lines.index("")
    assert [line.split()[0] for line in lines[1:empty]] == list(registry.NAMES)
    assert [line.split()[0] for line in lines[empty + 1 :]] == ["reference", "cpu", "cuda", "triton"]
    assert _C.isa() in lines[empty + 2]


def test_an_op_that_the_table_does_not_name_is_refused() -> None:
    with pytest.raises(ValueError, match="schema must begin with one of"):
        registry.register(
            "softmax(Tensor x) -> Tensor", fake=torch.empty_like, reference=torch.clone, cpu=torch.clone
        )


def test_without_torch_the_extra_is_named() -> None:
    code = "import sys; sys.modules['torch'] = None; import fastserve.ops"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install fastserve[torch]" in done.stderr
