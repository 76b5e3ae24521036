"""A model's dimensions, read from the metadata of its GGUF file and checked against one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastserve.errors import ModelConfigError

SUPPORTED_ARCHITECTURES = ("llama",)
MAX_DIMENSION = 1 << 20  # of anything but the vocabulary: beyond every known model, far from overflow
MAX_VOCAB = 1 << 22
MAX_CONTEXT = 1 << 24


@dataclass(frozen=True, slots=True)
class ModelConfig:
    architecture: str
    num_layers: int
    hidden: int  # D
    intermediate: int  # F
    num_heads: int  # H
    num_kv_heads: int  # K
    head_dim: int  # E
    rotary_dim: int
    rope_base: float
    norm_eps: float
    vocab_size: int
    context_length: int
    sliding_window: int = 0  # positions that a token attends to, its own included; 0: all before it

    @property
    def heads_per_kv_head(self) -> int:
        return self.num_heads // self.num_kv_heads

    def inv_freq(self) -> list[float]:
        """[rotary_dim / 2] angular speed of each rotary pair, in radians per position."""
        return [self.rope_base ** (-2 * i / self.rotary_dim) for i in range(self.rotary_dim // 2)]


class _Metadata:
    def __init__(self, values: Mapping[str, object], architecture: str) -> None:
        self._values = values
        self._architecture = architecture

    def integer(
        self, key: str, *, default: int | None = None, least: int = 1, limit: int = MAX_DIMENSION
    ) -> int:
        name = f"{self._architecture}.{key}"
        value = self._values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= limit:
            raise ModelConfigError(f"{name} must be an integer in [{least}, {limit}], got {value!r}")
        return value

    def real(self, key: str, *, default: float | None = None) -> float:
        name = f"{self._architecture}.{key}"
        value = self._values.get(name, default)
        if not isinstance(value, int | float) or not 0 < value < 1e12:
            raise ModelConfigError(f"{name} must be a positive number, got {value!r}")
        return float(value)


def read_config(metadata: Mapping[str, object], *, vocab_rows: int) -> ModelConfig:
    """The configuration of a model whose embedding has `vocab_rows` rows.

    Raises ModelConfigError naming the architecture or key that is missing, unsupported or contradictory.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in SUPPORTED_ARCHITECTURES:
        supported = ", ".join(SUPPORTED_ARCHITECTURES)
        raise ModelConfigError(f"architecture {architecture!r} is not supported; supported: {supported}")
    values = _Metadata(metadata, str(architecture))
    num_heads = values.integer("attention.head_count")
    hidden = values.integer("embedding_length")
    head_dim = values.integer("attention.key_length", default=max(hidden // num_heads, 1))
    config = ModelConfig(
        architecture=str(architecture),
        num_layers=values.integer("block_count"),
        hidden=hidden,
        intermediate=values.integer("feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=values.integer("attention.head_count_kv", default=num_heads),
        head_dim=head_dim,
        rotary_dim=values.integer("rope.dimension_count", default=head_dim),
        rope_base=values.real("rope.freq_base", default=10000.0),
        norm_eps=values.real("attention.layer_norm_rms_epsilon"),
        vocab_size=vocab_rows,
        context_length=values.integer("context_length", limit=MAX_CONTEXT),
        sliding_window=values.integer("attention.sliding_window", default=0, least=0, limit=MAX_CONTEXT),
    )
    _check(config, metadata)
    return config


def _check(config: ModelConfig, metadata: Mapping[str, object]) -> None:
    def require(condition: bool, rule: str) -> None:
        if not condition:
            raise ModelConfigError(rule)

    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    require(heads % kv_heads == 0, f"{heads} query heads must be a multiple of {kv_heads} KV heads")
    require(head_dim % 2 == 0 and head_dim <= 256, f"head dim must be even and at most 256, got {head_dim}")
    require(
        config.rotary_dim % 2 == 0 and config.rotary_dim <= head_dim,
        f"rotary dim must be even and at most the head dim {head_dim}, got {config.rotary_dim}",
    )
    require(
        config.vocab_size <= MAX_VOCAB, f"vocabulary must be at most {MAX_VOCAB}, got {config.vocab_size}"
    )
    pattern = f"{config.architecture}.attention.sliding_window_pattern"
    require(pattern not in metadata, f"{pattern} is not supported: all layers have one window")
    scaling = metadata.get(f"{config.architecture}.rope.scaling.type", "none")
    require(scaling == "none", f"rope scaling {scaling!r} is not supported; supported: none")
