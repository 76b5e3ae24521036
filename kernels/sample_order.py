"""The tokens of a row of logits for sample: their order, as integers, and their weights."""

from __future__ import annotations

import triton
import triton.language as tl

GREEDY_BELOW = tl.constexpr(1e-5)  # temperature, as in fastserve/ops/sample.py
NOTHING = tl.constexpr(float("-inf"))  # the logit of a token that is banned, or none
NO_KEY = tl.constexpr(-2139095042)  # one less than the key of -inf
ONE = tl.constexpr(float(1 << 42))  # the likeliest token's weight: 2^20 of them are far from overflowing


@triton.jit
def as_tensor(number):  # type: ignore[no-untyped-def]
    """Of a constant; Triton 3.6 has no tl.to_tensor."""
    return number + tl.zeros([], tl.int32)


@triton.jit
def option(pointer, row, default):  # type: ignore[no-untyped-def]
    if pointer is None:
        return as_tensor(default)
    else:
        return tl.load(pointer + row)


@triton.jit
def without_minus_zero(x):  # type: ignore[no-untyped-def]
    return tl.where(x == 0.0, 0.0, x)


@triton.jit
def scaled(logits, temperature):  # type: ignore[no-untyped-def]
    """logit / temperature as the reference rounds it, without -0: it would have a key of its own."""
    return without_minus_zero(tl.div_rn(logits, temperature))


@triton.jit
def key_of(x):  # type: ignore[no-untyped-def]
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def float_of(key):  # type: ignore[no-untyped-def]
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def probability(x, highest):  # type: ignore[no-untyped-def]
    """Relative to the likeliest token."""
    return tl.exp(x.to(tl.float64) - highest.to(tl.float64))


@triton.jit
def weight_of(x, highest):  # type: ignore[no-untyped-def]
    return tl.floor(probability(x, highest) * ONE + 0.5).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def load_scaled(logits, ids, temperature, V: tl.constexpr):  # type: ignore[no-untyped-def]
    return scaled(tl.load(logits + ids, ids < V, NOTHING).to(tl.float32), temperature)
