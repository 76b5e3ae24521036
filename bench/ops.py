"""Every op against what torch has for it: `pytest bench/ops.py -k matmul`, `--benchmark-json FILE` for all numbers;
matmul with `--peer zentorch` against that.

Lines at the end compare in turns and per placement state; pytest-benchmark's own table holds ours alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from fastserve.benchmark.machine import Machine
from fastserve.benchmark.op_cases import (
    EIGHT_B,
    MATMUL_KINDS,
    MATMUL_ROWS,
    MATMUL_SHAPES,
    NORMS,
    SMOLLM2,
    Case,
    Heads,
    MatmulWeights,
    attention_case,
    matmul_case,
    norm_case,
)
from fastserve.benchmark.op_lines import lines as lines_of
from fastserve.benchmark.op_lines import measure
from fastserve.benchmark.placement import probe
from fastserve.benchmark.report import Line
from fastserve.benchmark.roofs import Roofs
from fastserve.benchmark.torch_matmul import MatmulPeer, UnfitPeerError, torch_matmul
from fastserve.benchmark.turns import calls_for
from fastserve.benchmark.zentorch_matmul import zentorch_matmul

pytestmark = pytest.mark.timeout(0)


class Bench:
    """Runs one case and keeps its lines."""

    def __init__(
        self, benchmark: Any, config: pytest.Config, machine: Machine, roofs: Roofs, lines: list[Line]
    ) -> None:
        self._benchmark = benchmark
        self.peer: str = config.getoption("--peer")
        self._rounds: int = config.getoption("--turns")
        self._batch_s: float = config.getoption("--batch-ms") / 1e3
        self._machine, self._roofs, self._lines = machine, roofs, lines

    def __call__(self, case: Case) -> None:
        buckets = measure(case, rounds=self._rounds, batch_s=self._batch_s, probe=probe)
        found = lines_of(case, buckets, self._machine, self._roofs)
        self._lines += found
        self._benchmark.group = f"{case.op} {case.dtype}"
        self._benchmark.extra_info.update(
            lines=[line.as_dict() for line in found], seconds_by_state=buckets.seconds
        )
        self._benchmark.pedantic(
            case.ours, rounds=self._rounds, iterations=calls_for(case.ours, self._batch_s), warmup_rounds=1
        )


@pytest.fixture
def bench(
    benchmark: Any, pytestconfig: pytest.Config, machine: Machine, roofs: Roofs, lines: list[Line]
) -> Bench:
    return Bench(benchmark, pytestconfig, machine, roofs, lines)


PEERS: dict[str, MatmulPeer] = {"torch": torch_matmul, "zentorch": zentorch_matmul}


@lru_cache(maxsize=1)
def weights(shape: str, weight_type: str, peer: str) -> MatmulWeights:
    return MatmulWeights.make(MATMUL_SHAPES[shape], weight_type, PEERS[peer])  # type: ignore[arg-type]


MATMULS = [
    pytest.param(
        shape,
        weight_type,
        bits,
        rows,
        id=f"{weight_type}{'' if bits == 14 else '-8_bits'}-{shape.replace(' ', '_')}-M{rows}",
    )
    for shape in MATMUL_SHAPES
    for weight_type, bits in MATMUL_KINDS
    for rows in MATMUL_ROWS
]


@pytest.mark.parametrize(("shape", "weight_type", "activation_bits", "rows"), MATMULS)
def test_matmul(bench: Bench, shape: str, weight_type: str, activation_bits: int, rows: int) -> None:
    try:
        case = matmul_case(weights(shape, weight_type, bench.peer), rows, activation_bits)
    except UnfitPeerError as error:
        pytest.skip(str(error))  # the peer has no such product, or gets it wrong: no ratio to be had
    bench(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("context", [128, 1024])
@pytest.mark.parametrize("num_requests", [1, 16])
@pytest.mark.parametrize("heads", [SMOLLM2, EIGHT_B], ids=lambda heads: heads.model)
def test_paged_attention_decode(
    bench: Bench, heads: Heads, num_requests: int, context: int, dtype: torch.dtype
) -> None:
    bench(attention_case(heads, dtype, num_requests=num_requests, context=context, decode=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("context", [128, 512])
@pytest.mark.parametrize("heads", [SMOLLM2, EIGHT_B], ids=lambda heads: heads.model)
def test_paged_attention_prefill(bench: Bench, heads: Heads, context: int, dtype: torch.dtype) -> None:
    bench(attention_case(heads, dtype, num_requests=1, context=context, decode=False))


@pytest.mark.parametrize("d", [576, 4096])
@pytest.mark.parametrize("rows", [1, 32, 512])
@pytest.mark.parametrize("name", NORMS)
def test_norm(bench: Bench, name: str, rows: int, d: int) -> None:
    bench(norm_case(name, rows, d))
