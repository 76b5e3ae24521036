"""tl.dot of bf16 operands is wrong in Triton's interpreter (it multiplies their bits): fp16 and fp32 here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from fastserve.kernels import matmul as module
from fastserve.kernels.matmul import Epilogue, MatmulConfig, WeightType, choose_matmul, matmul
from torch import Tensor
from torch.nn.functional import gelu, silu

from fastserve.ops import reference

QUANTISED: tuple[WeightType, ...] = ("q8", "q4", "q4m")
# Of the rounding to `out`. Sums of fp16 products differ by fp32's own rounding, 1e-6 of the largest.
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-11}
TABLES = [80, 90]  # tiles of mma.sync through pointers; tiles of wgmma, through descriptors where aligned


@dataclass(frozen=True, slots=True)
class Weight:
    type: WeightType
    data: Tensor
    values: Tensor  # fp32: what the kernel multiplies by
    scales: Tensor | None = None
    minima: Tensor | None = None

    def multiply(
        self, x: Tensor, out: Tensor, *, architecture: int = 80, epilogue: Epilogue = "none"
    ) -> Tensor:
        matmul(
            x, self.data, out=out, weight_type=self.type, scales=self.scales, minima=self.minima, epilogue=epilogue,
            architecture=architecture,
        )  # fmt: skip
        return out


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def make_weight(generator: torch.Generator, type: WeightType, n: int, k: int, dtype: torch.dtype) -> Weight:
    """Random codes: what a quantiser would make of a weight is not of interest here."""
    if type == "plain":
        data = torch.randn(n, k, generator=generator).to(dtype)
        return Weight(type, data, data.float())
    scales = (0.1 * torch.rand(n, k // 32, generator=generator) + 0.01).half()
    scale = scales.float().repeat_interleave(32, dim=1)
    if type == "q8":
        codes = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
        return Weight(type, codes, (scale * codes).to(dtype).float(), scales)
    codes = torch.randint(0, 16, (n, k), generator=generator, dtype=torch.uint8)
    data = codes[:, ::2] | codes[:, 1::2] << 4
    if type == "q4":
        return Weight(type, data, (scale * (codes.float() - 8)).to(dtype).float(), scales)
    minima = torch.randn(n, k // 32, generator=generator).half()
    minimum = minima.float().repeat_interleave(32, dim=1)
    return Weight(type, data, (scale * codes + minimum).to(dtype).float(), scales, minima)


def check(out: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(out.float(), expected, rtol=ROUNDING[out.dtype], atol=1e-6 * scale)


@pytest.mark.parametrize("architecture", TABLES)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("type", get_args(WeightType))
def test_fast_equals_slow(
    generator: torch.Generator, type: WeightType, dtype: torch.dtype, architecture: int
) -> None:
    for m, n, k in [(1, 7, 33), (3, 33, 32), (17, 40, 160)]:
        if type != "plain" and k % 32:
            continue
        x = torch.randn(m, k, generator=generator).to(dtype)
        w = make_weight(generator, type, n, k, dtype)
        expected = reference.matmul(x.float(), w.values)
        check(w.multiply(x, torch.empty(m, n, dtype=dtype), architecture=architecture), expected)
        check(w.multiply(x, torch.empty(m, n), architecture=architecture), expected)


@pytest.mark.parametrize("tile", [(128, 256), (64, 128), (32, 32), (16, 64)])
def test_tiles_cover_the_output(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int]
) -> None:
    monkeypatch.setattr(module, "choose_matmul", lambda *_: MatmulConfig(*tile, 64, 4, 2))
    x = torch.randn(70, 100, generator=generator).half()
    w = make_weight(generator, "plain", 130, 100, torch.float16)
    for architecture in TABLES:
        out = w.multiply(x, torch.full((70, 130), torch.nan), architecture=architecture)
        check(out, reference.matmul(x.float(), w.values))


@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_every_tile_is_made_once_whatever_the_group(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(module, "GROUP_M", group)
    monkeypatch.setattr(module, "choose_matmul", lambda *_: MatmulConfig(16, 32, 32, 4, 2))
    x = torch.randn(70, 8, generator=generator)  # 5 rows of tiles, 3 columns
    w = make_weight(generator, "plain", 70, 8, torch.float32)
    check(w.multiply(x, torch.full((70, 70), torch.nan)), reference.matmul(x, w.values))


@pytest.mark.parametrize("architecture", TABLES)
def test_reads_and_writes_columns_of_wider_matrices(generator: torch.Generator, architecture: int) -> None:
    for k in (45, 64):
        x = torch.full((6, k + 7), torch.nan)
        w = torch.full((24, k + 9), torch.nan)
        x[:5, 3 : 3 + k] = torch.randn(5, k, generator=generator)
        w[:20, 5 : 5 + k] = torch.randn(20, k, generator=generator)
        for dtype in ROUNDING:
            wide = torch.full((6, 26), torch.nan)
            left, right = x.to(dtype)[:5, 3 : 3 + k], w.to(dtype)[:20, 5 : 5 + k]
            matmul(left, right, out=wide[:5, 2:22], architecture=architecture)
            check(wide[:5, 2:22], reference.matmul(left.float(), right.float()))
            assert wide[5].isnan().all()
            assert wide[:, :2].isnan().all()
            assert wide[:, 22:].isnan().all()


@pytest.mark.parametrize("type", ["plain", *QUANTISED])
def test_descriptors_and_pointers_give_the_same_bits(generator: torch.Generator, type: WeightType) -> None:
    k = 160
    buffer = torch.randn(21, k + 8, generator=generator).half()
    aligned, shifted = torch.empty(21, k + 8).half()[:, :k], torch.empty(21, k + 8).half()[:, 1 : k + 1]
    aligned.copy_(buffer[:, :k])
    shifted.copy_(buffer[:, :k])
    w = make_weight(generator, type, 50, k, torch.float16)
    by_descriptors, by_pointers = (
        w.multiply(x, torch.empty(21, 50), architecture=90) for x in (aligned, shifted)
    )
    assert torch.equal(by_descriptors, by_pointers)
    check(by_pointers, reference.matmul(aligned.float(), w.values))


def test_epilogues(generator: torch.Generator) -> None:
    slow = {
        "none": lambda y: y,
        "relu": torch.relu,
        "silu": silu,
        "gelu_tanh": lambda y: gelu(y, approximate="tanh"),
    }
    x = torch.randn(5, 48, generator=generator)
    w = torch.randn(37, 48, generator=generator) / 7
    bias = torch.randn(37, generator=generator)
    for epilogue, activate in slow.items():
        for given in (None, bias):
            out = torch.empty(5, 37)
            matmul(x, w, out=out, bias=given, epilogue=epilogue)  # type: ignore[arg-type]
            y = reference.matmul(x, w) + (0 if given is None else given)
            torch.testing.assert_close(out, activate(y), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("architecture", TABLES)
@pytest.mark.parametrize("type", ["plain", "q4m"])
def test_gate_and_up_are_multiplied_together(
    generator: torch.Generator, type: WeightType, architecture: int
) -> None:
    x = torch.randn(5, 64, generator=generator).half()
    w = make_weight(generator, type, 2 * 37, 64, torch.float16)
    out = w.multiply(x, torch.empty(5, 37), architecture=architecture, epilogue="silu_mul")
    check(out, reference.silu_mul(reference.matmul(x.float(), w.values)))
    bias = torch.randn(2 * 37, generator=generator)
    plain = torch.randn(2 * 37, 64, generator=generator).half() / 8
    matmul(x, plain, out=out, bias=bias, epilogue="silu_mul", architecture=architecture)
    check(out, reference.silu_mul(reference.matmul(x.float(), plain.float()) + bias))


@pytest.mark.parametrize("architecture", TABLES)
@pytest.mark.parametrize("type", get_args(WeightType))
def test_a_sum_runs_over_ascending_k_whatever_the_number_of_rows(
    generator: torch.Generator, type: WeightType, architecture: int
) -> None:
    """One nonzero x per BLOCK_K: products are exact, so bits show the order in which blocks are added."""
    n, num_blocks = 33, 4
    k = choose_matmul(1, n, 768, type, torch.float16, architecture).block_k * num_blocks
    w = make_weight(generator, type, n, k, torch.float16)
    x = torch.zeros(70, k)
    x[:, :: k // num_blocks] = torch.randn(70, num_blocks, generator=generator)
    x = x.half()
    expected = torch.zeros(70, n)
    for block_k in range(0, k, k // num_blocks):
        expected += x[:, block_k : block_k + 1].float() * w.values[:, block_k]
    for m in (1, 17, 70):
        assert torch.equal(w.multiply(x[:m], torch.empty(m, n), architecture=architecture), expected[:m]), m
    assert torch.equal(w.multiply(x[66:67], torch.empty(1, n), architecture=architecture), expected[66:67])


def test_a_row_does_not_depend_on_the_values_of_others(generator: torch.Generator) -> None:
    x = torch.randn(16, 96, generator=generator).half()
    w = make_weight(generator, "q4", 40, 96, torch.float16)
    whole = w.multiply(x, torch.empty(16, 40))
    x[1:9] = torch.nan
    assert torch.equal(w.multiply(x, torch.empty(16, 40))[9:], whole[9:])


def test_no_rows_give_no_rows(generator: torch.Generator) -> None:
    w = make_weight(generator, "plain", 7, 8, torch.float32)
    w.multiply(torch.empty(0, 8), torch.empty(0, 7))


@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("type", get_args(WeightType))
def test_the_number_of_rows_changes_neither_block_k_nor_the_kind_of_mma(
    type: WeightType, dtype: torch.dtype, architecture: int
) -> None:
    for n, k in [(4096, 4096), (28672, 4096), (576, 1536), (32, 32)]:
        configs = [choose_matmul(m, n, k, type, dtype, architecture) for m in (1, 16, 17, 64, 65, 300, 8192)]
        assert len({config.block_k for config in configs}) == 1
        assert type == "plain" or k % configs[0].block_k == 0
        if dtype == torch.bfloat16 and architecture in (90, 100):
            assert min(config.block_m for config in configs) >= 64  # fewer rows would not be wgmma's
            assert all(config.num_warps % 4 == 0 for config in configs)


def test_tiles_fill_the_sms() -> None:
    def tile(m: int, n: int, type: WeightType, architecture: int) -> tuple[int, int]:
        config = choose_matmul(m, n, 4096, type, torch.bfloat16, architecture)
        return config.block_m, config.block_n

    assert tile(1, 4096, "plain", 80) == (16, 32)
    assert tile(16, 28672, "plain", 80) == (16, 64)
    assert tile(16, 4096, "plain", 90) == (64, 32)
    assert tile(16, 4096, "q4", 100) == (64, 32)
    assert tile(128, 4096, "plain", 90) == (64, 64)
    assert tile(512, 4096, "plain", 90) == (128, 128)
    assert tile(1024, 4096, "plain", 90) == (128, 256)
    assert tile(4096, 28672, "q4m", 90) == (128, 128)
    assert tile(4096, 28672, "plain", 80) == (128, 128)
