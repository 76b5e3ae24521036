"""A step runs in the smallest graph that holds its rows."""

from __future__ import annotations

import pytest

from fastserve.cuda.buckets import MAX_BUCKET, choose_bucket, choose_buckets


@pytest.mark.parametrize("max_rows", [1, 2, 3, 8, 9, 64, 100, 512, 4096])
def test_buckets_ascend_to_the_largest_step_that_has_a_graph(max_rows: int) -> None:
    buckets = choose_buckets(max_rows)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[-1] == min(max_rows, MAX_BUCKET)


def test_padding_is_at_most_seven_rows_or_an_eighth() -> None:
    buckets = choose_buckets(MAX_BUCKET)
    for rows in range(1, MAX_BUCKET + 1):
        bucket = choose_bucket(buckets, rows)
        assert bucket is not None
        assert rows <= bucket <= rows + max(7, rows // 8)


def test_graphs_are_few() -> None:
    assert len(choose_buckets(MAX_BUCKET)) < 50


def test_more_rows_than_the_largest_graph_have_none() -> None:
    assert choose_bucket((1, 2, 4), 5) is None
