from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastserve.ops
from fastserve.ops import pack, reference

from .conftest import ISAS
from .torchrun import run_ranks

EXAMPLE = "matmul_all_reduce_example.py"


def test_two_processes_of_torchrun_agree_with_torch() -> None:
    assert run_ranks(EXAMPLE, 2) == [f"rank {rank} of 2: equal to torch" for rank in range(2)]


def test_the_example_fits_readme() -> None:
    lines = Path(__file__).with_name(EXAMPLE).read_text().splitlines()
    assert len(lines) <= 15


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_collectives_equal_their_references_on_every_isa(num_ranks: int) -> None:
    isas = ", ".join(ISAS)
    expected = [f"rank {rank} of {num_ranks}: passed on {isas}" for rank in range(num_ranks)]
    assert run_ranks("collectives_script.py", num_ranks) == expected


def test_a_rank_that_dies_is_an_error_not_a_hang() -> None:
    assert run_ranks("lost_rank_script.py", 2) == ["noticed"]


@pytest.mark.parametrize("group", [None, SimpleNamespace(rank=0, size=1, exchange=None)])
def test_alone_it_is_a_matmul(isa: str, generator: torch.Generator, group: SimpleNamespace | None) -> None:
    x = torch.randn(5, 64, generator=generator)
    w = pack(torch.randn(20, 64, generator=generator), "q8")
    assert torch.equal(fastserve.ops.matmul_all_reduce(x, w, group), fastserve.ops.matmul(x, w))
    assert torch.equal(reference.matmul_all_reduce(x, w, group), reference.matmul(x, w))


@pytest.mark.parametrize(
    ("dtype", "type"), [(torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.float16, "f16")]
)
def test_a_plain_weight_is_packed_as_its_own_type(
    generator: torch.Generator, dtype: torch.dtype, type: fastserve.ops.packed_weight.WeightType
) -> None:
    x = torch.randn(5, 64, generator=generator)
    w = torch.randn(20, 64, generator=generator).to(dtype)
    assert torch.equal(
        fastserve.ops.matmul_all_reduce(x, w, None), fastserve.ops.matmul_all_reduce(x, pack(w, type), None)
    )


def test_passes_opcheck(generator: torch.Generator) -> None:
    w = pack(torch.randn(20, 64, generator=generator), "f32")
    args = (torch.randn(3, 64, generator=generator), w.data, w.type, w.n, w.k, 0)
    torch.library.opcheck(torch.ops.fastserve.matmul_all_reduce.default, args)


def test_a_bad_argument_is_named() -> None:
    with pytest.raises(ValueError, match="w must be fp32"):
        fastserve.ops.matmul_all_reduce(torch.zeros(2, 4), torch.zeros(3, 4).double(), None)
    with pytest.raises(ValueError, match="x must be float32"):
        fastserve.ops.matmul_all_reduce(torch.zeros(2, 5), torch.zeros(3, 4), None)


def test_a_reference_without_its_ranks_is_refused() -> None:
    group = SimpleNamespace(rank=0, size=2, exchange=None)
    with pytest.raises(ValueError, match=r"group must match torch\.distributed"):
        reference.matmul_all_reduce(torch.zeros(2, 4), torch.zeros(3, 4), group)
