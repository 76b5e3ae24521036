"""Activations times a packed weight."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from fastserve import _C
from fastserve.ops import arguments, device_call, registry, weight_rows
from fastserve.ops.backend import lays_rows
from fastserve.ops.packed_weight import PackedWeight, check, check_layout, unpack
from fastserve.ops.silu_mul import silu_mul
from fastserve.ops.weight_rows import QUANT_BLOCK

Epilogue = Literal["none", "silu", "gelu_tanh", "relu", "silu_mul"]
EPILOGUES: tuple[str, ...] = get_args(Epilogue)

# What the CPU's kernels do to x before they multiply; f32 and f16 weights leave it as it is.
_ROUNDED = ("bf16", "q8", "q4", "q4m")
ACTIVATION_BITS = 14  # unless asked otherwise
# kMaxCode, kMaxByteCode, kMantissas and the smallest scale of csrc/cpu/matmul_operand.h
MAX_CODES = {14: 8127, 8: 127}
SCALE_MANTISSAS = 4
SMALLEST_SCALE = 2.0**-100


def matmul(
    x: Tensor,
    w: PackedWeight,
    *,
    bias: Tensor | None = None,
    epilogue: Epilogue = "none",
    activation_bits: int = ACTIVATION_BITS,
) -> Tensor:
    """epilogue(x w^T + bias), summed in fp32; the order of a sum depends on K alone, so a row's bits do not depend on
    other rows.

    x        [M, K] rows contiguous; on the CPU fp32, rounded to bf16 for a bf16 weight and to activation_bits with a
             scale of three bits per 32 for a quantised one; on GPUs bf16, fp16 or fp32, a plain weight's own type
    w        [N, K] PackedWeight (fastserve.ops.pack)
    bias     [N] fp32
    epilogue silu, gelu_tanh (its tanh form), relu; silu_mul: w is [gate | up], out = silu(x gate^T) * x up^T, no bias
    activation_bits 14 or 8, which takes little more than half the time where products decide; GPUs round nothing
    out      [M, N], for silu_mul [M, N / 2], of x's dtype
    Raises ValueError naming the argument whose shape or dtype is wrong.
    """
    return _op(x, w.data, w.type, w.n, w.k, bias, epilogue, activation_bits)


def reference(
    x: Tensor,
    w: Tensor | PackedWeight,
    *,
    bias: Tensor | None = None,
    epilogue: Epilogue = "none",
    activation_bits: int = ACTIVATION_BITS,
) -> Tensor:
    """In fp32: x stays as it is for a plain w [N, K] of any dtype, is rounded as above for a packed one."""
    if not isinstance(w, PackedWeight):
        product = x.float() @ w.float().T
    elif lays_rows(w.data.device):
        product = x.float() @ unpack(w).to(x.dtype).float().T
    else:
        product = round_activations(x.float(), w.type, activation_bits) @ unpack(w).T
    return finish(product, bias, epilogue).to(x.dtype)


def round_activations(x: Tensor, weight_type: str, activation_bits: int) -> Tensor:
    if weight_type == "bf16":
        return x.bfloat16().float()
    if weight_type not in _ROUNDED:
        return x
    blocks = x.reshape(x.shape[0], -1, QUANT_BLOCK)
    least = blocks.abs().amax(-1, keepdim=True) * (
        1 / torch.tensor(MAX_CODES[activation_bits], dtype=torch.float32)
    )
    mantissa, exponent = torch.frexp(least.clamp(min=SMALLEST_SCALE))  # from 0.5 on
    scale = torch.ldexp((mantissa * 2 * SCALE_MANTISSAS).ceil() / (2 * SCALE_MANTISSAS), exponent)
    return ((blocks * (1 / scale)).round() * scale).flatten(-2)


def finish(product: Tensor, bias: Tensor | None, epilogue: str) -> Tensor:
    if bias is not None:
        product = product + bias
    if epilogue == "silu_mul":
        gate, up = product.chunk(2, dim=-1)
        return functional.silu(gate) * up
    if epilogue == "gelu_tanh":
        return functional.gelu(product, approximate="tanh")
    if epilogue == "none":
        return product
    return functional.silu(product) if epilogue == "silu" else product.relu()


def allocate(x: Tensor, w: Tensor, type: str, n: int, k: int) -> Tensor:
    """Checks the operands and makes room for the product."""
    check_operands(x, w, type, n, k)
    return x.new_empty((x.shape[0], n))


def check_operands(x: Tensor, w: Tensor, type: str, n: int, k: int) -> None:
    """Raises ValueError naming what is wrong."""
    check(w, type, n, k)
    own_dtype = weight_rows.PLAIN.get(type) if lays_rows(x.device) else None
    arguments.rows("x", x, num_columns=k, dtype=own_dtype)


def check_epilogue(n: int, bias: Tensor | None, epilogue: str) -> None:
    """Raises ValueError naming what is wrong."""
    if epilogue not in EPILOGUES:
        arguments.require("epilogue", False, f"be one of {', '.join(EPILOGUES)}", epilogue)
    if bias is not None:
        arguments.vector("bias", bias, dtype=torch.float32, size=n)
    if epilogue == "silu_mul":
        arguments.require("bias", bias is None, "be None for silu_mul", "a tensor")
        arguments.require("w", n % 2 == 0, "have an even number of rows for silu_mul", n)


def check_activation_bits(activation_bits: int) -> None:
    arguments.require("activation_bits", activation_bits in MAX_CODES, "be 14 or 8", activation_bits)


def check_alignment(w: Tensor) -> None:
    if w.data_ptr() % 64:
        arguments.require("w", False, "start at a multiple of 64 bytes", hex(w.data_ptr()))


def _allocate(  # noqa: PLR0917 (the schema's order)
    x: Tensor, w: Tensor, type: str, n: int, k: int, bias: Tensor | None, epilogue: str,
    activation_bits: int = ACTIVATION_BITS,
) -> Tensor:  # fmt: skip
    check_operands(x, w, type, n, k)
    check_epilogue(n, bias, epilogue)
    check_activation_bits(activation_bits)
    return x.new_empty((x.shape[0], n // 2 if epilogue == "silu_mul" else n))


def _reference(  # noqa: PLR0917 (the schema's order)
    x: Tensor, w: Tensor, type: str, n: int, k: int, bias: Tensor | None, epilogue: Epilogue,
    activation_bits: int = ACTIVATION_BITS,
) -> Tensor:  # fmt: skip
    packed = PackedWeight(w, type, n, k)  # type: ignore[arg-type]
    return reference(x, packed, bias=bias, epilogue=epilogue, activation_bits=activation_bits)


def _cpu(  # noqa: PLR0917 (the schema's order)
    x: Tensor, w: Tensor, type: str, n: int, k: int, bias: Tensor | None, epilogue: str,
    activation_bits: int = ACTIVATION_BITS,
) -> Tensor:  # fmt: skip
    check_epilogue(n, bias, epilogue)
    check_activation_bits(activation_bits)
    fused = epilogue == "silu_mul" and n // 2 % QUANT_BLOCK == 0
    # As check_operands, but for asking again which backend this is: the environment takes a microsecond.
    check_layout(w, type, n, k, in_rows=False)
    arguments.rows("x", x, num_columns=k, dtype=torch.float32)
    check_alignment(w)
    out = x.new_empty((x.shape[0], n // 2 if fused else n))
    if x.shape[0]:
        _C.ops.matmul(
            x.data_ptr(), x.stride(0), x.shape[0], w.data_ptr(), type, n, k,
            out.data_ptr(), out.stride(0), activation_bits, fused, 0 if bias is None else bias.data_ptr(),
        )  # fmt: skip
    if epilogue == "silu_mul":
        return out if fused else silu_mul(out)
    return finish(out, None, epilogue)


def multiply_by_triton(  # noqa: PLR0917 (the schema's order)
    x: Tensor,
    w: Tensor,
    type: str,
    n: int,
    k: int,
    bias: Tensor | None,
    epilogue: str,
    out: Tensor,
) -> None:
    """Into `out`, of x's dtype or fp32."""
    from fastserve.kernels.matmul import matmul as kernel

    values, scales, minima = weight_rows.parts(w, type, n, k)
    weight_type = "plain" if scales is None else type
    kernel(
        x,
        values,
        out=out,
        weight_type=weight_type,
        scales=scales,
        minima=minima,
        bias=bias,
        epilogue=epilogue,
    )


def multiply_by_cuda(  # noqa: PLR0917 (the schema's order)
    x: Tensor,
    w: Tensor,
    type: str,
    n: int,
    k: int,
    bias: Tensor | None,
    epilogue: str,
    out: Tensor,
) -> None:
    """Into `out`, of x's dtype or fp32. Raises ValueError for a weight that is neither bf16 nor f16."""
    arguments.require(
        "type", type in ("bf16", "f16"), "be bf16 or f16 for the backend cuda (triton has all)", type
    )
    cuda = device_call.cuda()
    call = device_call.product(device_call.aligned_rows(x), weight_rows.parts(w, type, n, k).values, out)
    address = 0 if bias is None else bias.data_ptr()
    cuda.matmul(*call, address, cuda.EPILOGUES.index(epilogue), device_call.stream_of(x))


def _triton(  # noqa: PLR0917 (the schema's order)
    x: Tensor, w: Tensor, type: str, n: int, k: int, bias: Tensor | None, epilogue: str,
    activation_bits: int = ACTIVATION_BITS,
) -> Tensor:  # fmt: skip
    out = _allocate(x, w, type, n, k, bias, epilogue, activation_bits)
    multiply_by_triton(x, w, type, n, k, bias, epilogue, out)
    return out


def _cuda(  # noqa: PLR0917 (the schema's order)
    x: Tensor, w: Tensor, type: str, n: int, k: int, bias: Tensor | None, epilogue: str,
    activation_bits: int = ACTIVATION_BITS,
) -> Tensor:  # fmt: skip
    out = _allocate(x, w, type, n, k, bias, epilogue, activation_bits)
    multiply_by_cuda(x, w, type, n, k, bias, epilogue, out)
    return out


_op = registry.register(
    "matmul(Tensor x, Tensor w, str type, int n, int k, Tensor? bias, str epilogue, int activation_bits=14) -> Tensor",
    fake=_allocate,
    reference=_reference,
    cpu=_cpu,
    triton=_triton,
    cuda=_cuda,
)
