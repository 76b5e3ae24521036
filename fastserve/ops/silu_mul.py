"""The gated activation of the llama family's MLP."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu

from fastserve import _C
from fastserve.ops import arguments, registry


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate_up = [gate | up] and silu(a) = a / (1 + exp(-a)).

    gate_up [T, 2 F] fp32, rows contiguous
    out     [T, F]   fp32
    Raises ValueError naming the argument whose shape or dtype is wrong.
    Source: Shazeer 2020, "GLU variants improve transformer" (SwiGLU).
    """
    return _op(gate_up)


def reference(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(gate_up.dtype)


def _allocate(gate_up: Tensor) -> Tensor:
    arguments.rows("gate_up", gate_up)
    num_rows, columns = gate_up.shape
    arguments.require("gate_up", columns % 2 == 0, "have an even number of columns", columns)
    return gate_up.new_empty((num_rows, columns // 2))


def _cpu(gate_up: Tensor) -> Tensor:
    out = _allocate(gate_up)
    num_rows, f = out.shape
    if num_rows and f:
        _C.ops.silu_mul(gate_up.data_ptr(), gate_up.stride(0), num_rows, f, out.data_ptr(), out.stride(0))
    return out


def _triton(gate_up: Tensor) -> Tensor:
    from fastserve.kernels.silu_mul import silu_mul as kernel

    out = _allocate(gate_up)
    kernel(gate_up, out=out)
    return out


_op = registry.register(
    "silu_mul(Tensor gate_up) -> Tensor", fake=_allocate, reference=reference, cpu=_cpu, triton=_triton
)
