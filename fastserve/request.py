"""What a caller asks for and what it gets back: plain data that every layer above the cache shares."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_CHOICES = 128
MAX_SEED = 2**63 - 1


def _check(condition: bool, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{rule}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn; names and defaults as in vLLM.

    Raises ValueError naming the argument, the rule and the value.
    """

    n: int = 1
    max_tokens: int | None = 16  # None: up to the context's end
    min_tokens: int = 0
    temperature: float = 1.0  # 0: greedy, ties go to the lowest id
    top_k: int = 0  # 0 or -1: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # > 1 discourages tokens of prompt and output
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] | list[str] | str = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # how many of the likeliest tokens to report beside the sampled one
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "top_k", max(self.top_k, 0) if self.top_k >= -1 else self.top_k)
        self._check_counts()
        self._check_floats()
        _check(len(stop) <= MAX_STOP_STRINGS, f"stop must hold at most {MAX_STOP_STRINGS} strings", len(stop))
        _check(all(isinstance(s, str) and s for s in stop), "stop strings must not be empty", stop)
        _check(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
            f"stop_token_ids must hold at most {MAX_STOP_TOKEN_IDS} ids",
            len(self.stop_token_ids),
        )
        _check(
            len(self.logit_bias) <= MAX_LOGIT_BIAS,
            f"logit_bias must hold at most {MAX_LOGIT_BIAS} tokens",
            len(self.logit_bias),
        )

    def _check_counts(self) -> None:
        _check(1 <= self.n <= MAX_CHOICES, f"n must be in [1, {MAX_CHOICES}]", self.n)
        _check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens must be >= 1", self.max_tokens)
        _check(self.min_tokens >= 0, "min_tokens must be >= 0", self.min_tokens)
        if self.max_tokens is not None:
            _check(
                self.min_tokens <= self.max_tokens,
                f"min_tokens must be <= max_tokens ({self.max_tokens})",
                self.min_tokens,
            )
        _check(0 <= self.top_k < 2**31, "top_k must be >= -1", self.top_k)
        _check(self.seed is None or 0 <= self.seed <= MAX_SEED, "seed must be in [0, 2^63)", self.seed)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _check(
                value is None or 0 <= value <= MAX_LOGPROBS, f"{name} must be in [0, {MAX_LOGPROBS}]", value
            )
        for token_id in self.stop_token_ids:
            _check(0 <= token_id < 2**31, "stop_token_ids must be token ids", token_id)

    def _check_floats(self) -> None:
        def within(name: str, low: float, high: float, *, open_low: bool = False) -> None:
            value = getattr(self, name)
            inside = math.isfinite(value) and (low < value if open_low else low <= value) and value <= high
            _check(inside, f"{name} must be in {'(' if open_low else '['}{low:g}, {high:g}]", value)

        within("temperature", 0, 100)
        within("top_p", 0, 1, open_low=True)
        within("min_p", 0, 1)
        within("repetition_penalty", 0, 100, open_low=True)
        within("presence_penalty", -2, 2)
        within("frequency_penalty", -2, 2)
        for token_id, bias in self.logit_bias.items():
            _check(0 <= token_id < 2**31, "logit_bias keys must be token ids", token_id)
            _check(math.isfinite(bias) and abs(bias) <= 100, "logit_bias values must be in [-100, 100]", bias)


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate at one position, of the model's own distribution."""

    token_id: int
    logprob: float
    rank: int  # 1 = the likeliest
    text: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The sampled (or scored) token of a position and the likeliest ones beside it."""

    sampled: Logprob
    top: tuple[Logprob, ...]


@dataclass(slots=True)
class CompletionOutput:
    """One of a request's n choices; while streaming, text and token_ids are cumulative."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or token id that ended it


@dataclass(slots=True)
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # [0] is None: nothing precedes it
