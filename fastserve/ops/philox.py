"""The random numbers of `sample`: a pure function of (seed, output index, token id).

The slow twin of csrc/cpu/philox.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_GROUP = 64  # token 64 g + 16 w + j takes word w of counter 16 g + j
_COUNTERS = 16


def philox4x32_10(key: tuple[int, int], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random words for every counter, as int64 in [0, 2^32). Source: Salmon et al., SC 2011."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    product = word * multiplier  # wraps; the mask below removes the sign that the shift drags in
    return (product >> 32) & _WORD, product & _WORD


def uniform(seed: int, output_idx: int, vocab_size: int) -> Tensor:
    """[V] fp64 in (0, 1), one number per token id."""
    num_groups = -(-vocab_size // _GROUP)
    counters = torch.arange(num_groups * _COUNTERS)
    zeros = torch.zeros_like(counters)
    words = philox4x32_10((seed & _WORD, seed >> 32 & _WORD), (counters, zeros + output_idx, zeros, zeros))
    by_token = torch.stack(words).reshape(4, num_groups, _COUNTERS).transpose(0, 1).flatten()[:vocab_size]
    return (by_token.double() + 0.5) / 2**32
