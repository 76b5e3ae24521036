"""Activations times a weight matrix, and what follows it: out = epilogue(x w^T + bias).

x   [M, K] bf16, fp16 or fp32, rows contiguous, any row stride
w   [N, K] "plain": of x's dtype, any row stride; or contiguous, 32 weights along K to a scale (32 divides K):
    "q8"   codes int8 [N, K],       w = scale * code
    "q4"   codes uint8 [N, K / 2],  w = scale * (code - 8); byte j has weight 2 j in its low nibble, 2 j + 1 above
    "q4m"  codes as of q4,          w = scale * code + minimum
    with scales (and minima) fp16 [N, K / 32], contiguous, at an address that 8 divides
out [M, N], of x's dtype or fp32, any row stride. Epilogue "silu_mul": w is [gate | up], N = 2 F rows, and
    out [M, F] = silu(gate) * up; one program makes a tile of gate and the tile of up that belongs to it.

Strategy. One program makes one tile of `out` over all of K: operands come through shared memory in a pipeline of
num_stages, tensor cores accumulate in fp32 (fp32 x: fused multiply-adds). Decode waits for memory: tiles 32 weights
wide give 128 of an H100's 132 SMs a program at N = 4096, and their 8 stages keep 3.6 MB of weights in flight, more
than the 2.7 MB that 3.35 TB/s ask for if a load takes 0.8 us. Prefill takes 128 x 256, 85 operations per byte that
leaves L2. Tiles go in groups of GROUP_M rows of tiles, so that those under way share x and w in L2. Quantised weights
are decoded in registers: a nibble becomes the low bits of 2^23, subtracting that leaves it as fp32, scale * code is
exact (11 + 8 bits), and it is rounded to x's dtype (q4m: after an fp32 addition). 7 to 10 instructions a weight, of
which an H100 issues 2.9e13 a second, let 4-bit decode use at best half of its 3.35 TB/s, in half of bf16's time
(counted in the compiled loops, not measured).

Same bits. An element is one chain of MMAs over ascending K, never split. How an MMA adds its 16 products is not
documented (A100 fuses 8 of them with the accumulator, H100 16: Xie et al.), and nothing promises that two *kinds* of
instruction agree: on an H100, mma.sync for tiles of fewer than 64 rows and wgmma for the others. So choose_matmul
takes one kind per architecture: mma.sync m16n8k16 on sm_80; on sm_90 (wgmma) and sm_100 (tcgen05) every tile has 64
rows or more, and rows beyond M, which descriptors fill with zeros, cost no memory traffic. That an element does not
depend on the m and n of an instruction remains an assumption. BLOCK_K follows from K, types and architecture: where
Triton permutes k within an MMA (mma.sync on operands that were loaded with fewer bits) it does so by BLOCK_K and that
width alone. Descriptors and pointers load the same tiles; absent k are zeros, which change no sum.

Loads. From sm_90 on, tensor descriptors (TMA): no thread computes addresses. They want base and row stride to be
multiples of 16 bytes; other tensors take pointers (cp.async), as on sm_80. The host makes the descriptors: those that
kernels make need memory from triton.set_allocator at each launch.

Source: Xie et al. 2024, "FPRev"; PTX ISA 8.7, sections on wgmma and tcgen05.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

WeightType = Literal["plain", "q8", "q4", "q4m"]
Epilogue = Literal["none", "silu", "gelu_tanh", "relu", "silu_mul"]

QUANT_BLOCK = tl.constexpr(32)  # weights along K that share a scale
GROUP_M = 8  # rows of tiles in a group: at K = 4096 their rows of x are 8 MB of bf16, a sixth of an H100's L2
ENOUGH_PROGRAMS = 100  # most of the 108 SMs of an A100, the 132 of an H100, the 148 of a B200 have one
TWO_TO_23 = tl.constexpr(8388608.0)  # the last bit of its mantissa is 1
TWO_TO_23_BITS = tl.constexpr(0x4B000000)
TWO_SQRT_TWO_OVER_PI = tl.constexpr(1.5957691216057308)


@dataclass(frozen=True, slots=True)
class MatmulConfig:
    block_m: int
    block_n: int  # rows of w: silu_mul takes one half from gate, one from up
    block_k: int
    num_warps: int
    num_stages: int


# (block_m, block_n, num_warps, num_stages), large to small. Stages: of a prefill tile what shared memory holds (163 KB
# on sm_80, 227 KB from sm_90 on), of a decode tile half of it, so that two programs share an SM.
_TILES = {
    "mma.sync": (
        (128, 128, 8, 4), (64, 128, 4, 4), (64, 64, 4, 5), (32, 128, 4, 4), (32, 32, 4, 6),
        (16, 64, 4, 6), (16, 32, 4, 8),
    ),
    "mma.sync quantised": ((128, 128, 8, 4), (64, 64, 4, 4), (32, 64, 4, 5), (16, 64, 4, 6), (16, 32, 4, 6)),
    "wgmma": ((128, 256, 8, 4), (128, 128, 8, 3), (64, 128, 4, 4), (64, 64, 4, 6), (64, 32, 4, 8)),
    "wgmma quantised": ((128, 128, 8, 3), (64, 64, 4, 4), (64, 32, 4, 4)),
    "fma": ((64, 64, 8, 3), (32, 32, 4, 4), (16, 32, 4, 4)),
}  # fmt: skip


def has_wgmma(architecture: int) -> bool:
    """Or its successor, tcgen05. sm_120 has neither."""
    return 90 <= architecture < 120


def choose_matmul(  # noqa: PLR0917 (the problem, then the machine)
    m: int, n: int, k: int, weight_type: WeightType, dtype: torch.dtype, architecture: int
) -> MatmulConfig:
    """The largest tile that is half full and gives most SMs a program; the smallest if none does.

    architecture: 10 * major + minor of the compute capability
    """
    kind = "fma" if dtype == torch.float32 else "wgmma" if has_wgmma(architecture) else "mma.sync"
    block_k = 32 if kind == "fma" else 64  # a row of a tile is one line of 128 bytes
    if kind != "fma" and weight_type != "plain":
        block_k = math.gcd(k, 128 if kind == "wgmma" else 64)  # mma.sync would spill at 128
        kind += " quantised"
    tiles = [tile for tile in _TILES[kind] if m > tile[0] // 2 or tile[0] == _TILES[kind][-1][0]]
    filling = (tile for tile in tiles if -(-m // tile[0]) * -(-n // tile[1]) >= ENOUGH_PROGRAMS)
    block_m, block_n, num_warps, num_stages = next(filling, tiles[-1])
    return MatmulConfig(block_m, block_n, block_k, num_warps, num_stages)


@triton.jit  # type: ignore[untyped-decorator]
def _load_tile(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    source, ld, row, num_rows, column, num_columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLUMNS] of a matrix, zeros where it has ended. WHOLE: COLUMNS divides its number of columns."""
    if DESCRIPTORS:
        return source.load([row, column])
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        inside = (rows < num_rows)[:, None]
        if not WHOLE:
            inside &= (columns < num_columns)[None, :]
        return tl.load(source + rows.to(tl.int64)[:, None] * ld + columns[None, :], inside, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _load_scales(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    scales, row, num_rows, k, num_k, ROWS: tl.constexpr, BLOCKS: tl.constexpr
):
    """[ROWS, BLOCKS, 1] fp32: those of one tile's row as one word, as cp.async copies no fewer than 4 bytes."""
    WORD: tl.constexpr = tl.int64 if BLOCKS == 4 else tl.int32 if BLOCKS == 2 else tl.int16
    rows = row + tl.arange(0, ROWS)
    words = scales.to(tl.pointer_type(WORD)) + rows.to(tl.int64) * (num_k // (QUANT_BLOCK * BLOCKS))
    word = tl.load(words + k // (QUANT_BLOCK * BLOCKS), rows < num_rows, 0)
    halves = word[:, None] >> (16 * tl.arange(0, BLOCKS))[None, :].to(WORD)
    return halves.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)[:, :, None]


@triton.jit  # type: ignore[untyped-decorator]
def _decode(bits, ZERO: tl.constexpr):  # type: ignore[no-untyped-def]
    """bits - ZERO as fp32, bits (int32) below 2^23: two operations at full rate, where a conversion runs at half."""
    return (bits | TWO_TO_23_BITS).to(tl.float32, bitcast=True) - (TWO_TO_23 + ZERO)


@triton.jit  # type: ignore[untyped-decorator]
def _load_weights(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    w, scales, minima, ldw, row, num_rows, k, num_k, DTYPE: tl.constexpr,
    WEIGHT: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """[ROWS, BLOCK_K] of what w means."""
    if WEIGHT == "plain":
        return _load_tile(w, ldw, row, num_rows, k, num_k, ROWS, BLOCK_K, WHOLE, DESCRIPTORS)
    else:
        BLOCKS: tl.constexpr = BLOCK_K // QUANT_BLOCK
        scale = _load_scales(scales, row, num_rows, k, num_k, ROWS, BLOCKS)
        if WEIGHT == "q8":
            codes = _load_tile(w, ldw, row, num_rows, k, num_k, ROWS, BLOCK_K, WHOLE, DESCRIPTORS)
            values = tl.reshape(codes.to(tl.float32), (ROWS, BLOCKS, QUANT_BLOCK)) * scale
        else:
            ZERO: tl.constexpr = 8 if WEIGHT == "q4" else 0
            codes = _load_tile(
                w, ldw, row, num_rows, k // 2, num_k // 2, ROWS, BLOCK_K // 2, WHOLE, DESCRIPTORS
            )
            codes = tl.reshape(codes.to(tl.int32), (ROWS, BLOCKS, QUANT_BLOCK // 2))
            low = _decode(codes & 15, ZERO) * scale
            high = _decode(codes & 240, 16 * ZERO) * (scale / 16)  # not shifted: one operation less
            if WEIGHT == "q4m":
                minimum = _load_scales(minima, row, num_rows, k, num_k, ROWS, BLOCKS)
                low += minimum
                high += minimum
            values = tl.join(low, high)
        return tl.reshape(values.to(DTYPE), (ROWS, BLOCK_K))


@triton.jit  # type: ignore[untyped-decorator]
def _activate(y, EPILOGUE: tl.constexpr):  # type: ignore[no-untyped-def]
    """(1 + tanh u) / 2 = 1 / (1 + exp(-2 u)): gelu's tanh form is a silu with another argument of exp."""
    if EPILOGUE == "relu":
        return tl.maximum(y, 0.0)
    elif EPILOGUE == "gelu_tanh":
        return y / (1.0 + tl.exp((y + 0.044715 * y * y * y) * -TWO_SQRT_TWO_OVER_PI))
    elif EPILOGUE == "none":
        return y
    else:  # silu, and the gate of silu_mul
        return y / (1.0 + tl.exp(-y))


@triton.jit  # type: ignore[untyped-decorator]
def _place_of(program, num_m, num_n, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which tile: down the rows of a group, then on to its next column."""
    first = program // (GROUP * num_n) * GROUP
    size = min(num_m - first, GROUP)
    within = program % (GROUP * num_n)
    return first + within % size, within // size


@triton.jit(do_not_specialize=["M"])  # type: ignore[untyped-decorator]
def multiply_tile(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, w, scales, minima, bias, out, ldx, ldw, ldo, M, N, K,
    WEIGHT: tl.constexpr, EPILOGUE: tl.constexpr, DESCRIPTORS: tl.constexpr, WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """N: columns of out. x and w are descriptors or pointers."""
    GATED: tl.constexpr = EPILOGUE == "silu_mul"
    num_weights = 2 * N if GATED else N
    place_m, place_n = _place_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    row = place_m * BLOCK_M
    column = place_n * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        a = _load_tile(x, ldx, row, M, k, K, BLOCK_M, BLOCK_K, WHOLE_K, DESCRIPTORS)
        b = _load_weights(
            w, scales, minima, ldw, column, num_weights, k, K,
            a.dtype, WEIGHT, BLOCK_N, BLOCK_K, WHOLE_K, DESCRIPTORS,
        )  # fmt: skip
        total = tl.dot(a, b.T, total, input_precision="ieee")
        if GATED:
            b = _load_weights(
                w, scales, minima, ldw, N + column, num_weights, k, K,
                a.dtype, WEIGHT, BLOCK_N, BLOCK_K, WHOLE_K, DESCRIPTORS,
            )  # fmt: skip
            up = tl.dot(a, b.T, up, input_precision="ieee")
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    if bias is not None:
        total += tl.load(bias + columns, columns < N, 0.0)[None, :]
        if GATED:
            up += tl.load(bias + N + columns, columns < N, 0.0)[None, :]
    total = _activate(total, EPILOGUE)
    if GATED:
        total *= up
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(
        out + rows.to(tl.int64)[:, None] * ldo + columns[None, :], total.to(out.dtype.element_ty), inside
    )


def _takes_descriptor(matrix: Tensor) -> bool:
    return matrix.data_ptr() % 16 == 0 and matrix.stride(0) * matrix.element_size() % 16 == 0


def _architecture_of(tensor: Tensor) -> int:
    """10 * major + minor of its device's compute capability. CPU tensors are the interpreter's: sm_80."""
    if tensor.device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def matmul(
    x: Tensor,
    w: Tensor,
    *,
    out: Tensor,
    weight_type: WeightType = "plain",
    scales: Tensor | None = None,
    minima: Tensor | None = None,
    bias: Tensor | None = None,
    epilogue: Epilogue = "none",
    architecture: int | None = None,
) -> None:
    """out = epilogue(x w^T + bias); shapes and types as the module says.

    w      [N, K], or the codes of a quantised weight, with its scales and (q4m) minima
    bias   [N] fp32
    architecture: to compile for; None: that of x's device
    """
    m, k = x.shape
    n = w.shape[0]
    num_columns = out.shape[1]
    if m == 0 or n == 0:
        return
    architecture = architecture or _architecture_of(x)
    config = choose_matmul(m, n, k, weight_type, x.dtype, architecture)
    block_n = config.block_n // 2 if epilogue == "silu_mul" else config.block_n
    descriptors = (
        has_wgmma(architecture) and x.dtype != torch.float32 and _takes_descriptor(x) and _takes_descriptor(w)
    )
    left, right = x, w
    if descriptors:
        codes_k = config.block_k // 2 if weight_type in ("q4", "q4m") else config.block_k
        left = TensorDescriptor.from_tensor(x, [config.block_m, config.block_k])
        right = TensorDescriptor.from_tensor(w, [block_n, codes_k])
    grid = (triton.cdiv(m, config.block_m) * triton.cdiv(num_columns, block_n),)
    multiply_tile[grid](
        left, right, scales, minima, bias, out, x.stride(0), w.stride(0), out.stride(0), m, num_columns, k,
        weight_type, epilogue, descriptors, k % config.block_k == 0, config.block_m, block_n, config.block_k, GROUP_M,
        num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
