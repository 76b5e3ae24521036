"""How an engine is set up: one frozen record that the CLI, `LLM` and the server all fill."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

KvDtype = Literal["auto", "f32", "bf16", "int8"]
PolicyName = Literal["fcfs"]
Speculation = Literal["auto", "off"]
OnLoss = Literal["respawn", "shrink"]

DEFAULT_MODEL = "smollm2-135m"
MAX_HEARTBEAT_S = 3600.0
ACTIVATION_BITS = (14, 8)
_COUNTS = (
    "max_num_tokens",
    "max_num_seqs",
    "max_model_len",
    "kv_cache_bytes",
    "num_threads",
    "max_waiting",
)


def _at_least(name: str, value: float | None, low: int) -> None:
    if value is not None and not value >= low:
        raise ValueError(f"{name} must be >= {low}, got {value}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def given_shares(shares: str) -> list[float] | None:
    """The numbers, if `shares` are numbers. Raises ValueError."""
    if shares in ("auto", "equal"):
        return None
    try:
        numbers = [float(number) for number in shares.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"shares must be auto, equal or positive numbers such as 2,1; got {shares!r}")
    return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Raises ValueError naming the option, the rule and the value."""

    model: str = DEFAULT_MODEL  # a known name, or a path to a GGUF file
    devices: int | str = 1  # how many, or which: distributed/devices.py
    shares: str = "auto"  # of the work, per device: by measured speed, "equal", or numbers such as "2,1"
    max_num_tokens: int = 512  # rows of a step: decodes first, chunks of prompts fill the rest
    max_step_ms: float = 40.0  # of a step in which requests decode: beside them prompts run in pieces so long
    max_num_seqs: int = 64  # requests that run at a time
    max_model_len: int | None = None  # None: the model's own context length
    kv_cache_bytes: int | None = None  # of the whole group; None: chosen from free memory
    # auto: bf16, f32 where all weights are. int8, on CPUs: nearly twice as many tokens as bf16 in the same memory,
    # logits move by some 4 % instead of 2 %.
    kv_dtype: KvDtype = "auto"
    # On CPUs, of the codes that quantised weights are multiplied with. 8, as other engines have it: prefill and batches
    # take about two thirds of the time, logits move by some 10 % instead of 1 %, and answers differ more between device
    # counts.
    activation_bits: int = 14
    num_threads: int | None = None  # per device; None: the cores at hand, divided
    on_loss: OnLoss = "respawn"  # a lost rank is replaced, or the others share out what it held
    heartbeat_s: float = (
        5.0  # a rank that shows no sign of life for so long is lost: longer than any op lasts
    )
    offline: bool = False  # never fetch a model
    policy: PolicyName = "fcfs"
    speculation: Speculation = (
        "auto"  # drafts from a request's own text, where that is faster; never other tokens
    )
    max_waiting: int = 1024  # requests that wait for a slot; more are turned away
    seed: int | None = None  # for requests that bring none; None: fresh ones from the system

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must name a model or a file, got ''")
        for name in _COUNTS:
            _at_least(name, getattr(self, name), 1)
        if isinstance(self.devices, int):
            _at_least("devices", self.devices, 1)
        if not self.max_step_ms > 0:
            raise ValueError(f"max_step_ms must be > 0, got {self.max_step_ms}")
        given_shares(self.shares)
        _at_least("seed", self.seed, 0)
        if not 1 <= self.heartbeat_s <= MAX_HEARTBEAT_S:
            raise ValueError(f"heartbeat_s must be in [1, {MAX_HEARTBEAT_S:g}], got {self.heartbeat_s}")
        # Every running request must be able to decode in every step.
        if self.max_num_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_tokens must be >= max_num_seqs ({self.max_num_seqs}), got {self.max_num_tokens}"
            )
        if self.activation_bits not in ACTIVATION_BITS:
            raise ValueError(f"activation_bits must be 14 or 8, got {self.activation_bits}")
        _one_of("kv_dtype", self.kv_dtype, get_args(KvDtype))
        _one_of("on_loss", self.on_loss, get_args(OnLoss))
        _one_of("policy", self.policy, get_args(PolicyName))
        _one_of("speculation", self.speculation, get_args(Speculation))
