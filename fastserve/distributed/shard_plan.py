"""Who holds what: a model's heads, MLP columns and vocabulary cut over the ranks of a group.

Nothing assumes divisibility. Attention is cut at query heads, and a rank also holds the KV heads that its query heads
read, so a KV head may live on two ranks. What a rank got too little of there, it gets more of in the MLP (cut at
multiples of MLP_UNIT, the weights that share a scale) and in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastserve.models.config import ModelConfig
from fastserve.models.llama import Shard

MLP_UNIT = 32  # a quantised block along K of the down projection
MAX_DEVICES = 64  # readers of a mailbox


@dataclass(frozen=True, slots=True)
class ShardPlan:
    shards: tuple[Shard, ...]

    @property
    def num_ranks(self) -> int:
        return len(self.shards)


def apportion(total: int, shares: Sequence[float], *, minimum: int = 1) -> list[int]:
    """Cuts `total` units by shares, each part at least `minimum`: largest remainder, ties to the lowest rank."""
    assert total >= minimum * len(shares), (total, minimum, len(shares))
    spare = total - minimum * len(shares)
    wanted = [max(total * share - minimum, 0.0) for share in shares]
    scale = spare / sum(wanted) if sum(wanted) > 0 else 0.0
    exact = [scale * want for want in wanted]
    parts = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(parts)), key=lambda rank: (parts[rank] - exact[rank], rank))
    for i in range(spare - sum(parts)):
        parts[by_remainder[i % len(parts)]] += 1
    return [minimum + part for part in parts]


def _ranges(parts: Sequence[int], unit: int = 1) -> list[tuple[int, int]]:
    ranges, begin = [], 0
    for part in parts:
        ranges.append((begin * unit, (begin + part) * unit))
        begin += part
    return ranges


def make_plan(config: ModelConfig, devices: int, shares: Sequence[float] | None = None) -> ShardPlan:
    """The plan of `config` over `devices` ranks; `shares` are their relative speeds (equal without).

    Raises ValueError with the numbers where a model cannot be cut that far.
    """
    limit = min(config.num_heads, config.intermediate // MLP_UNIT, MAX_DEVICES)
    if not 1 <= devices <= limit:
        raise ValueError(
            f"devices must be in [1, {limit}] for this model ({config.num_heads} query heads, "
            f"{config.intermediate // MLP_UNIT} MLP blocks of {MLP_UNIT}), got {devices}"
        )
    if devices > 1 and (config.intermediate % MLP_UNIT or config.head_dim % MLP_UNIT):
        raise ValueError(
            f"a model over several devices needs intermediate and head dim in multiples of {MLP_UNIT}, "
            f"got {config.intermediate} and {config.head_dim}"
        )
    relative = list(shares) if shares is not None else [1.0] * devices
    if len(relative) != devices or any(not share > 0 for share in relative):
        raise ValueError(f"shares must be {devices} positive numbers, got {relative}")
    normal = [share / sum(relative) for share in relative]
    heads = _ranges(apportion(config.num_heads, normal))
    kv_heads = [_kv_range(config, span) for span in heads]
    if devices == 1:
        mlp = [(0, config.intermediate)]
    else:
        units = config.intermediate // MLP_UNIT
        mlp = _ranges(apportion(units, _mlp_shares(config, normal, heads, kv_heads)), MLP_UNIT)
    vocab = _ranges(apportion(config.vocab_size, normal))
    shards = tuple(
        Shard(
            heads=heads[rank],
            kv_heads=kv_heads[rank],
            intermediate=mlp[rank],
            vocab=vocab[rank],
            kv_of_head=tuple(
                head // config.heads_per_kv_head - kv_heads[rank][0] for head in range(*heads[rank])
            ),
        )
        for rank in range(devices)
    )
    return ShardPlan(shards)


def _kv_range(config: ModelConfig, heads: tuple[int, int]) -> tuple[int, int]:
    return heads[0] // config.heads_per_kv_head, (heads[1] - 1) // config.heads_per_kv_head + 1


def _mlp_shares(
    config: ModelConfig,
    shares: Sequence[float],
    heads: Sequence[tuple[int, int]],
    kv_heads: Sequence[tuple[int, int]],
) -> list[float]:
    """MLP shares that even out what whole heads made uneven, in weights per layer."""
    attention = [
        config.hidden * config.head_dim * (2 * (h[1] - h[0]) + 2 * (kv[1] - kv[0]))
        for h, kv in zip(heads, kv_heads, strict=True)
    ]
    mlp = 3 * config.hidden * config.intermediate
    layer = sum(attention) + mlp
    wanted = [max(layer * share - held, 0.0) for share, held in zip(shares, attention, strict=True)]
    return [want / sum(wanted) for want in wanted] if sum(wanted) > 0 else list(shares)


def describe(plan: ShardPlan, devices: Sequence[str]) -> str:
    """A table of the plan for people: a line a rank; `devices` are their names."""
    width = max(len("device"), *map(len, devices))
    rows: list[tuple[str, ...]] = [("rank", "device", "query heads", "KV heads", "MLP columns", "vocabulary")]
    for rank, shard in enumerate(plan.shards):
        cells = (shard.heads, shard.kv_heads, shard.intermediate, shard.vocab)
        rows.append((str(rank), devices[rank], *(f"{begin}-{end - 1}" for begin, end in cells)))
    lines = [
        f"{row[0]:>4}  {row[1]:<{width}}  {row[2]:>12}  {row[3]:>9}  {row[4]:>12}  {row[5]:>14}"
        for row in rows
    ]
    return "\n".join(lines)
