from __future__ import annotations

import os
import time
from typing import get_args

import pytest
import torch

import fastserve.ops
from fastserve.ops import PackedWeight, pack, reference, unpack
from fastserve.ops.packed_weight import WeightType

from .team import threads

TYPES = get_args(WeightType)
# Relative L2 error against the reference, which rounds activations alike. Sums differ in order alone, but an
# activation at a rounding boundary of its 14 bits may fall to either side.
TOLERANCE = {"f32": 1e-6, "f16": 1e-6, "bf16": 1e-6, "q8": 1e-4, "q4": 1e-4, "q4m": 1e-4}


def relative_error(fast: torch.Tensor, slow: torch.Tensor) -> float:
    return float((fast - slow).norm() / slow.norm())


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 17, 64), (5, 100, 96), (130, 33, 160), (7, 576, 576)])
def test_fast_equals_slow(
    isa: str, generator: torch.Generator, type: WeightType, shape: tuple[int, int, int]
) -> None:
    m, n, k = shape
    x = torch.randn(m, k, generator=generator)
    w = pack(torch.randn(n, k, generator=generator), type)
    assert relative_error(fastserve.ops.matmul(x, w), reference.matmul(x, w)) <= TOLERANCE[type]


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("shape", [(1, 1, 32), (5, 100, 96), (130, 33, 160)])
def test_codes_of_8_bits_equal_their_reference_and_leave_plain_weights_alone(
    isa: str, generator: torch.Generator, type: WeightType, shape: tuple[int, int, int]
) -> None:
    m, n, k = shape
    x = torch.randn(m, k, generator=generator)
    w = pack(torch.randn(n, k, generator=generator), type)
    fast = fastserve.ops.matmul(x, w, activation_bits=8)
    # Few codes: one that falls to the other side of its rounding boundary weighs more than with 14 bits.
    assert relative_error(fast, reference.matmul(x, w, activation_bits=8)) <= 10 * TOLERANCE[type]
    is_plain = type in ("f32", "f16", "bf16")
    assert torch.equal(fast, fastserve.ops.matmul(x, w)) == is_plain


@pytest.mark.parametrize("type", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("k", [1, 33])
def test_float_weights_take_any_k(isa: str, generator: torch.Generator, type: WeightType, k: int) -> None:
    x = torch.randn(3, k, generator=generator)
    w = pack(torch.randn(19, k, generator=generator), type)
    assert relative_error(fastserve.ops.matmul(x, w), reference.matmul(x, w)) <= TOLERANCE[type]


@pytest.mark.parametrize("type", TYPES)
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(
    isa: str, generator: torch.Generator, type: WeightType
) -> None:
    x = torch.randn(130, 96, generator=generator)
    w = pack(torch.randn(100, 96, generator=generator), type)
    whole = fastserve.ops.matmul(x, w)
    for m in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 16, 17, 31, 32, 33, 63, 64, 65, 129):
        assert torch.equal(fastserve.ops.matmul(x[:m], w), whole[:m]), m
    assert torch.equal(fastserve.ops.matmul(x[77:78], w), whole[77:78])


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("shape", [(1, 96, 64), (7, 40, 96), (9, 64, 576), (600, 160, 32)])
def test_silu_mul_gives_the_bits_of_the_op_behind(
    isa: str, generator: torch.Generator, type: WeightType, shape: tuple[int, int, int]
) -> None:
    m, f, k = shape
    x = torch.randn(m, k, generator=generator)
    w = pack(torch.randn(2 * f, k, generator=generator), type)
    expected = fastserve.ops.silu_mul(fastserve.ops.matmul(x, w))
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(fastserve.ops.matmul(x, w, epilogue="silu_mul"), expected), count


@pytest.mark.parametrize("type", ["f32", "bf16", "q4m"])
def test_a_bias_is_added_to_the_product(isa: str, type: WeightType) -> None:
    w = fastserve.ops.pack(torch.randn(40, 64), type)
    bias = torch.randn(40)
    for rows in (1, 130):
        x = torch.randn(rows, 64)
        product = fastserve.ops.matmul(x, w)
        for count in (1, 2):
            with threads(count):
                assert torch.equal(fastserve.ops.matmul(x, w, bias=bias), product + bias)
        gelu = torch.nn.functional.gelu(product + bias, approximate="tanh")
        assert torch.equal(fastserve.ops.matmul(x, w, bias=bias, epilogue="gelu_tanh"), gelu)


@pytest.mark.parametrize("type", TYPES)
def test_the_same_bits_whatever_the_number_of_threads(
    isa: str, generator: torch.Generator, type: WeightType
) -> None:
    x = torch.randn(9, 96, generator=generator)
    w = pack(torch.randn(100, 96, generator=generator), type)
    outs = []
    for count in (1, 2, 3):
        with threads(count):
            outs.append(fastserve.ops.matmul(x, w))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_threads_that_slept_may_run_on_every_core_afterwards(generator: torch.Generator) -> None:
    x, w = torch.randn(1, 64, generator=generator), pack(torch.randn(32, 64, generator=generator), "q8")
    with threads(3):
        fastserve.ops.matmul(x, w)
        cores = {task: os.sched_getaffinity(task) for task in map(int, os.listdir("/proc/self/task"))}
        for _ in range(5):
            time.sleep(0.01)
            fastserve.ops.matmul(x, w)
        assert {task: os.sched_getaffinity(task) for task in cores} == cores


def test_reads_columns_of_a_wider_matrix(isa: str, generator: torch.Generator) -> None:
    x = torch.randn(5, 96, generator=generator)[:, 16:80]
    w = pack(torch.randn(20, 64, generator=generator), "q8")
    assert torch.equal(fastserve.ops.matmul(x, w), fastserve.ops.matmul(x.contiguous(), w))


def test_a_plain_reference_weight_is_multiplied_in_fp32(generator: torch.Generator) -> None:
    x = torch.randn(5, 64, generator=generator)
    w = pack(torch.randn(20, 64, generator=generator), "q4")
    torch.testing.assert_close(reference.matmul(x, unpack(w)), x @ unpack(w).T)


def test_a_result_on_huge_pages_is_the_same(generator: torch.Generator) -> None:
    x, w = torch.randn(300, 32, generator=generator), torch.randn(16400, 32, generator=generator)
    packed = pack(w, "bf16")
    out = fastserve.ops.matmul(x, packed)
    assert out.nbytes > 16 << 20
    assert torch.equal(out[77:78], fastserve.ops.matmul(x[77:78], packed))
    assert torch.equal(out[-1:], fastserve.ops.matmul(x[-1:], packed))


def test_rows_of_zeros_give_zeros(isa: str, generator: torch.Generator) -> None:
    for type in TYPES:
        out = fastserve.ops.matmul(torch.zeros(3, 64), pack(torch.randn(20, 64, generator=generator), type))
        assert (out == 0).all(), type


def test_passes_opcheck(generator: torch.Generator) -> None:
    w = pack(torch.randn(20, 64, generator=generator), "q8")
    args = (torch.randn(3, 64, generator=generator), w.data, w.type, w.n, w.k, None, "none")
    torch.library.opcheck(torch.ops.fastserve.matmul.default, args)


def test_a_bad_argument_is_named(generator: torch.Generator) -> None:
    w = pack(torch.randn(20, 64, generator=generator), "f32")
    with pytest.raises(ValueError, match="x must be float32"):
        fastserve.ops.matmul(torch.zeros(3, 63), w)
    with pytest.raises(ValueError, match="x must be float32"):
        fastserve.ops.matmul(torch.zeros(3, 64).bfloat16(), w)
    with pytest.raises(ValueError, match="data must be contiguous uint8"):
        torch.ops.fastserve.matmul(torch.zeros(3, 64), w.data, w.type, 40, w.k, None, "none")
    shifted = torch.cat([w.data[:1], w.data])[1:]
    with pytest.raises(ValueError, match="activation_bits must be 14 or 8, got 7"):
        fastserve.ops.matmul(torch.zeros(3, 64), w, activation_bits=7)
    with pytest.raises(ValueError, match="w must start at a multiple of 64 bytes"):
        fastserve.ops.matmul(torch.zeros(3, 64), PackedWeight(shifted, w.type, w.n, w.k))
