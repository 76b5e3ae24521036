"""What the launchers of the row kernels launch, compiled for the GPUs of ahead_of_time.py, which has no driver.

A launcher runs on tensors without data; the kernel it would launch is replaced by a recorder.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fastserve.kernels.add_rms_norm import add_rms_norm
from fastserve.kernels.embed import Q4_0, Q4_1, Q8_0, embed
from fastserve.kernels.rms_norm import rms_norm
from fastserve.kernels.rotary import rotary
from fastserve.kernels.select_rows import select_rows
from fastserve.kernels.silu_mul import gelu_tanh_mul, silu_mul
from fastserve.kernels.store_kv import store_kv
from torch import Tensor

from .ahead_of_time import ARCHITECTURES, Case, Compiled, compile_cases

TRITON_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


def bf16(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def fp32(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def i32(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def u8(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, device="meta")


@dataclass(frozen=True, slots=True)
class Expected:
    """A call of a launcher, and what one thread of its kernel must come to.

    max_registers 32: an SM holds its 64 warps; 64: it holds two blocks of 16 warps, or four of 8
    num_wide      loads of 16 bytes, at least: a compiler may unroll a loop
    num_narrow    others: of token ids, positions, tables, scales
    """

    kernel: str
    call: Callable[[], None]
    max_registers: int
    num_wide: int
    num_narrow: int = 0
    architectures: tuple[int, ...] = ARCHITECTURES


EXPECTED = {
    "embed": Expected("embed_plain", lambda: embed(i32(7), bf16(99, 4096), out=bf16(7, 4096)), 32, 2, 1),
    "embed Q4_0": Expected(  # id, both bytes of a scale, 4 times 2 bytes of codes
        "embed_q4",
        lambda: embed(i32(7), u8(99, 128 * 18), gguf_type=Q4_0, out=bf16(7, 4096)),
        32,
        num_wide=0,
        num_narrow=1 + 2 + 4,
    ),
    "embed Q4_1": Expected(  # twice 4 bytes of codes
        "embed_q4",
        lambda: embed(i32(7), u8(99, 128 * 20), gguf_type=Q4_1, out=bf16(7, 4096)),
        32,
        num_wide=0,
        num_narrow=1 + 4 + 2,
        architectures=(90,),
    ),
    "embed Q8_0": Expected(  # two blocks a thread
        "embed_q8",
        lambda: embed(i32(7), u8(99, 128 * 34), gguf_type=Q8_0, out=bf16(7, 4096)),
        32,
        num_wide=0,
        num_narrow=1 + 2 * (2 + 4),
    ),
    "rms_norm": Expected(
        "norm_whole_rows", lambda: rms_norm(bf16(7, 4096), fp32(4096), 1e-5, out=bf16(7, 4096)), 64, 2 + 4
    ),
    "rms_norm of heads": Expected(
        "norm_whole_rows",
        lambda: rms_norm(bf16(7, 128), fp32(128), 1e-5, out=bf16(7, 128)),
        40,
        num_wide=2,
        num_narrow=1,
        architectures=(90,),
    ),
    "rms_norm of wide rows": Expected(
        "norm_wide_rows",
        lambda: rms_norm(bf16(7, 16384), fp32(16384), 1e-5, out=bf16(7, 16384)),
        64,
        num_wide=2 + 2 + 4,
    ),
    "add_rms_norm": Expected(
        "add_norm_whole_rows",
        lambda: add_rms_norm(bf16(7, 4096), bf16(7, 4096), fp32(4096), 1e-5, out=bf16(7, 4096)),
        64,
        num_wide=2 + 2 + 4,
    ),
    "add_rms_norm fp32": Expected(
        "add_norm_whole_rows",
        lambda: add_rms_norm(fp32(7, 8192), fp32(7, 8192), fp32(8192), 1e-5, out=fp32(7, 8192)),
        64,
        num_wide=4 + 4 + 4,
        architectures=(90,),
    ),
    "add_rms_norm of wide rows": Expected(
        "add_norm_wide_rows",
        lambda: add_rms_norm(bf16(7, 16384), bf16(7, 16384), fp32(16384), 1e-5, out=bf16(7, 16384)),
        64,
        num_wide=4 + 4 + 4,
    ),
    "rotary": Expected(  # two of q or one of k, and frequencies
        "turn_heads",
        lambda: rotary(bf16(7, 4096), bf16(7, 1024), i32(7), fp32(64), head_dim=128),
        40,
        num_wide=2 + 1 + 1,
        num_narrow=1,
    ),
    "silu_mul": Expected("activate_piece", lambda: silu_mul(bf16(7, 28672), out=bf16(7, 14336)), 32, 2),
    "gelu_tanh_mul": Expected(
        "activate_piece",
        lambda: gelu_tanh_mul(bf16(7, 28672), out=bf16(7, 14336)),
        32,
        num_wide=2,
        architectures=(90,),
    ),
    "store_kv": Expected(
        "store_piece",
        lambda: store_kv(
            bf16(7, 1024),
            bf16(7, 1024),
            k_cache=bf16(99, 8, 16, 128),
            v_cache=bf16(99, 8, 16, 128),
            row_slot=i32(7),
            positions=i32(7),
            tables=i32(4, 64),
        ),
        32,
        num_wide=2,
        num_narrow=3,
    ),
    "select_rows": Expected(
        "select_piece", lambda: select_rows(bf16(7, 4096), i32(3), out=bf16(3, 4096)), 32, 2, 1
    ),
}
KEYS = [(name, architecture) for name, one in EXPECTED.items() for architecture in one.architectures]
SUMS_OF_PRODUCTS = ("rms_norm", "add_rms_norm", "rotary", "silu_mul", "gelu_tanh_mul", "embed Q4_1")


class Recorder:
    """Stands where the kernel was, and keeps what it is launched with."""

    def __init__(self) -> None:
        self.arguments: tuple[object, ...] = ()
        self.options: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *arguments: object, **options: object) -> None:
        self.arguments, self.options = arguments, options


def recorded(name: str, patch: pytest.MonkeyPatch) -> tuple[inspect.Signature, Recorder]:
    expected = EXPECTED[name]
    module = importlib.import_module("fastserve.kernels." + op_of(name))
    kernel, recorder = getattr(module, expected.kernel), Recorder()
    with patch.context() as context:
        context.setattr(module, expected.kernel, recorder)
        expected.call()
    return inspect.signature(kernel.fn), recorder


def op_of(name: str) -> str:
    return name.split(maxsplit=1)[0].replace("gelu_tanh_mul", "silu_mul")


def case_of(name: str, architecture: int, patch: pytest.MonkeyPatch) -> Case:
    """The launch, specialised as Triton would: aligned pointers, and strides that are multiples of 16."""
    signature, recorder = recorded(name, patch)
    types: dict[str, str] = {}
    constants: dict[str, object] = {}
    aligned: list[str] = []
    for parameter, value in zip(signature.parameters.values(), recorder.arguments, strict=True):
        if parameter.annotation == "tl.constexpr":
            constants[parameter.name] = value
        elif isinstance(value, Tensor):
            types[parameter.name] = TRITON_TYPES[value.dtype]
            aligned.append(parameter.name)
        elif isinstance(value, int):
            types[parameter.name] = "i32"
            aligned += [parameter.name] if value % 16 == 0 else []
        else:
            types[parameter.name] = "fp32"
    return Case(
        "fastserve.kernels." + op_of(name),
        EXPECTED[name].kernel,
        architecture,
        types,
        constants,
        tuple(aligned),
        recorder.options["num_warps"],
        recorder.options.get("num_stages", 3),
    )


@pytest.fixture(scope="module")
def compiled() -> Iterator[dict[tuple[str, int], Compiled]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "0")  # what enable_fp_fusion=False is at a launch
        cases = [case_of(name, architecture, patch) for name, architecture in KEYS]
        yield dict(zip(KEYS, compile_cases(cases), strict=True))


@pytest.mark.parametrize(("name", "architecture"), KEYS)
def test_nothing_spills(compiled: dict[tuple[str, int], Compiled], name: str, architecture: int) -> None:
    result = compiled[name, architecture]
    assert result.local_bytes == 0
    assert result.registers <= EXPECTED[name].max_registers
    assert result.shared_bytes <= 512  # the partial sums of a norm; no row passes through shared memory


@pytest.mark.parametrize(("name", "architecture"), KEYS)
def test_aligned_rows_move_16_bytes_at_a_time(
    compiled: dict[tuple[str, int], Compiled], name: str, architecture: int
) -> None:
    sass = compiled[name, architecture].sass
    loads, stores = (re.findall(rf"\b{code}\.E\S*", sass) for code in ("LDG", "STG"))
    assert stores
    assert all(".128" in store for store in stores)
    num_wide = sum(".128" in load for load in loads)
    assert num_wide >= EXPECTED[name].num_wide
    assert len(loads) - num_wide == EXPECTED[name].num_narrow


@pytest.mark.parametrize("name", SUMS_OF_PRODUCTS)
def test_products_are_rounded_before_they_are_added(
    compiled: dict[tuple[str, int], Compiled], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, recorder = recorded(name, monkeypatch)
    assert recorder.options["enable_fp_fusion"] is False
    for architecture in EXPECTED[name].architectures:
        assert "FFMA" not in compiled[name, architecture].sass
        assert "DFMA" not in compiled[name, architecture].sass
