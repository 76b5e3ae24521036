from __future__ import annotations

import itertools

import pytest

from fastserve.distributed.shard_plan import MLP_UNIT, apportion, describe, make_plan
from fastserve.models.config import ModelConfig

SMOLLM2 = ModelConfig(
    architecture="llama",
    num_layers=30,
    hidden=576,
    intermediate=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rotary_dim=64,
    rope_base=1e5,
    norm_eps=1e-5,
    vocab_size=49152,
    context_length=8192,
)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5, 9])
def test_every_part_is_held_once_and_in_order(devices: int) -> None:
    plan = make_plan(SMOLLM2, devices)
    for name, total in (("heads", 9), ("intermediate", 1536), ("vocab", 49152)):
        ranges = [getattr(shard, name) for shard in plan.shards]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == total
        assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))
        assert all(begin < end for begin, end in ranges)


@pytest.mark.parametrize("devices", [2, 3, 4, 9])
def test_query_heads_read_the_kv_heads_that_their_rank_holds(devices: int) -> None:
    for shard in make_plan(SMOLLM2, devices).shards:
        kv_heads = range(*shard.kv_heads)
        for local, head in enumerate(range(*shard.heads)):
            assert kv_heads[shard.kv_of_head[local]] == head // 3


@pytest.mark.parametrize("devices", [2, 4, 9])
def test_mlp_is_cut_at_quantised_blocks(devices: int) -> None:
    for shard in make_plan(SMOLLM2, devices).shards:
        assert all(bound % MLP_UNIT == 0 for bound in shard.intermediate)


@pytest.mark.parametrize("devices", [2, 3, 4, 9])
def test_no_rank_holds_more_than_its_share_and_one_head_and_one_mlp_block(devices: int) -> None:
    config = SMOLLM2

    def weights(shard: object) -> int:
        heads = shard.num_heads * 2 + shard.num_kv_heads * 2  # type: ignore[attr-defined]
        begin, end = shard.intermediate  # type: ignore[attr-defined]
        return config.hidden * (heads * config.head_dim + 3 * (end - begin))

    whole = weights(make_plan(config, 1).shards[0])
    one_head = config.hidden * 4 * config.head_dim
    one_block = config.hidden * 3 * MLP_UNIT
    for shard in make_plan(config, devices).shards:
        assert weights(shard) <= whole / devices + one_head + one_block


def test_a_faster_device_gets_more() -> None:
    slow, fast = make_plan(SMOLLM2, 2, shares=[1, 2]).shards
    assert fast.num_heads > slow.num_heads
    assert fast.vocab[1] - fast.vocab[0] > 1.9 * (slow.vocab[1] - slow.vocab[0])


@pytest.mark.parametrize("devices", [0, -1, 10])
def test_an_impossible_number_of_devices_is_refused_with_the_numbers(devices: int) -> None:
    with pytest.raises(ValueError, match=rf"devices must be in \[1, 9\].*9 query heads.*got {devices}"):
        make_plan(SMOLLM2, devices)


def test_shares_must_be_positive_and_one_per_device() -> None:
    with pytest.raises(ValueError, match="2 positive numbers"):
        make_plan(SMOLLM2, 2, shares=[1.0])
    with pytest.raises(ValueError, match="2 positive numbers"):
        make_plan(SMOLLM2, 2, shares=[1.0, 0.0])


def test_apportion_gives_everything_out_and_nobody_nothing() -> None:
    assert apportion(9, [0.5, 0.5]) == [5, 4]
    assert apportion(3, [0.98, 0.01, 0.01]) == [1, 1, 1]
    assert sum(apportion(48, [0.3, 0.3, 0.4])) == 48


def test_describe_names_every_rank() -> None:
    lines = describe(make_plan(SMOLLM2, 4), [f"cpu:{core}" for core in range(4)]).splitlines()
    assert len(lines) == 5
    assert lines[1].split()[:3] == ["0", "cpu:0", "0-2"]
