"""A state is the interval of one number; batches whose state changed are compared with nothing."""

from __future__ import annotations

import pytest

from fastserve.benchmark.placement import Placement, bucket, classify, probe


@pytest.mark.parametrize(
    ("one_way_ns", "state"), [(24.0, "smt"), (57.0, "near"), (255.0, "far"), (None, "single")]
)
def test_measured_anchors_fall_in_their_state(one_way_ns: float | None, state: str) -> None:
    assert classify(one_way_ns) == state


@pytest.mark.parametrize(("below", "above", "limit"), [("smt", "near", 37.0), ("near", "far", 120.0)])
def test_a_state_ends_below_its_limit(below: str, above: str, limit: float) -> None:
    assert classify(limit - 0.01) == below
    assert classify(limit) == above


def test_batch_between_two_states_belongs_to_none() -> None:
    near, far = Placement("near", 57.0), Placement("far", 255.0)
    assert bucket(near, far) == "moved"
    assert bucket(far, Placement("far", 200.0)) == "far"


def test_one_core_is_single() -> None:
    assert probe([0]) == Placement("single")


def test_core_that_does_not_exist_is_single() -> None:
    assert probe([0, 1023]).state == "single"
