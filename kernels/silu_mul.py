"""silu_mul, gelu_tanh_mul: out = activation(gate) * up, where gate_up = [gate | up].

A row of F outputs moves 6 F bytes of bf16: two columns read, one written. A program makes one piece of one row;
every thread has a 16-byte load of gate and one of up in flight, so a single row of F = 14336 keeps 14 SMs busy
and many rows keep all of them reading.

Both activations are gate / (1 + exp(-z)): z = gate is silu; z = 2 sqrt(2 / pi) (gate + 0.044715 gate^3) is the
tanh form of gelu, for (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)), which also loses nothing to cancellation where
tanh is near -1. exp overflows to infinity for a very negative z, and the quotient is then -0, as it should be.

Accuracy: exp is ex2.approx of z log2(e), within 2 + 1.173 |z| ulp of fp32, and the division div.full, within
2 ulp (CUDA C++ Programming Guide, tables of __expf and __fdividef): for |z| < 8 within 2e-6 of the output,
less than a thousandth of a bf16's rounding. Beyond, either exp(-z) or the output vanishes.
Source: Shazeer 2020, "GLU variants improve transformer"; Hendrycks & Gimpel 2016 (gelu and its tanh form).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

Activation = Literal["silu", "gelu_tanh"]

MAX_BLOCK = 1024  # outputs of a piece: one 16-byte load of bf16 an operand in each thread of 4 warps
ELEMENTS_PER_THREAD = 8
TWO_SQRT_TWO_OVER_PI = tl.constexpr(1.5957691216057308)


@dataclass(frozen=True, slots=True)
class Piece:
    block: int
    num_warps: int


def choose_piece(f: int) -> Piece:
    block = min(MAX_BLOCK, triton.next_power_of_2(f))
    return Piece(block, num_warps=max(1, block // (32 * ELEMENTS_PER_THREAD)))


@triton.jit  # type: ignore[untyped-decorator]
def activate_piece(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    gate_up, out, ldx, ldo, F: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < F
    gate = tl.load(gate_up + row * ldx + columns, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * ldx + F + columns, inside, 0.0).to(tl.float32)
    z = gate
    if ACTIVATION == "gelu_tanh":
        z = TWO_SQRT_TWO_OVER_PI * (gate + 0.044715 * gate * gate * gate)
    value = gate / (1.0 + tl.exp(-z)) * up
    tl.store(out + row * ldo + columns, value.to(out.dtype.element_ty), inside)


def silu_mul(gate_up: Tensor, *, out: Tensor) -> None:
    """gate_up [T, 2 F] and out [T, F], rows contiguous, of one dtype: bf16, fp16 or fp32."""
    _activate(gate_up, "silu", out)


def gelu_tanh_mul(gate_up: Tensor, *, out: Tensor) -> None:
    """As silu_mul, with the tanh form of gelu: the gate of the gemma family."""
    _activate(gate_up, "gelu_tanh", out)


def _activate(gate_up: Tensor, activation: Activation, out: Tensor) -> None:
    num_rows, f = out.shape
    if num_rows == 0 or f == 0:
        return
    piece = choose_piece(f)
    grid = (num_rows, triton.cdiv(f, piece.block))
    activate_piece[grid](
        gate_up, out, gate_up.stride(0), out.stride(0), f, piece.block, activation,
        num_warps=piece.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
