"""A step runs in the smallest graph that holds its rows."""

from __future__ import annotations

import pytest

from fastserve.cuda.buckets import MAX_GRAPH, aligned_rows, choose_bucket, choose_buckets


@pytest.mark.parametrize("max_rows", [1, 2, 3, 8, 9, 64, 100, 512, 4096])
def test_buckets_ascend_to_the_largest_step(max_rows: int) -> None:
    buckets = choose_buckets(max_rows)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[-1] == max_rows


def test_padding_is_at_most_seven_rows_or_an_eighth() -> None:
    buckets = choose_buckets(MAX_GRAPH)
    for rows in range(1, MAX_GRAPH + 1):
        bucket = choose_bucket(buckets, rows)
        assert bucket is not None
        assert rows <= bucket <= rows + max(7, rows // 8)


def test_graphs_are_few() -> None:
    assert len(choose_buckets(MAX_GRAPH)) < 50


def test_more_rows_than_the_largest_graph_have_none() -> None:
    assert choose_bucket((1, 2, 4), 5) is None


@pytest.mark.parametrize(("num_rows", "aligned"), [(65, 80), (80, 80), (500, 500), (491, 496), (497, 500)])
def test_larger_steps_are_multiples_of_16_rows_up_to_the_largest(num_rows: int, aligned: int) -> None:
    assert aligned_rows(num_rows, 500) == aligned
