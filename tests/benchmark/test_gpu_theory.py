from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.benchmark.gpu_theory import (
    GPUS,
    H100,
    HOP_US,
    STRATEGIES,
    Gpu,
    Strategy,
    Work,
    all_reduce,
    matmul_all_reduce,
    strategy_table,
    table,
    works,
)

README = Path(__file__).parents[2] / "bench" / "README.md"
GPU = Gpu("a GPU", memory_tb_s=1.0, bf16_tflop_s=100, link_gb_s=100, host_gb_s=10)


def test_the_page_shows_what_the_module_computes() -> None:
    assert between("<!-- gpu theory -->", "<!-- end -->") == table()
    assert between("<!-- gpu strategies -->", "<!-- end of strategies -->") == strategy_table(H100)


def between(begin: str, end: str) -> list[str]:
    page = README.read_text(encoding="utf-8")
    return page[page.index(begin) : page.index(end)].splitlines()[1:]


@pytest.mark.parametrize(
    ("work", "roof_us"),
    [
        (Work("bytes", "", memory_bytes=1e6), 1.0),
        (Work("flops", "", memory_bytes=1e6, flops=1e9), 10.0),
        (Work("a sum", "", memory_bytes=1e6, link_bytes=1e6, hops=1), 1 + 10 + HOP_US),
        (Work("hidden", "", flops=1e9, link_bytes=1e6, hops=1, overlaps=True), 10 + HOP_US),
        (Work("half hidden", "", flops=1e9, link_bytes=2e6, hops=1, overlaps=True), 20 + HOP_US),
        (Work("to the host", "", host_bytes=1e6), 100.0),
    ],
)
def test_the_slower_of_memory_and_arithmetic_then_what_the_link_adds(work: Work, roof_us: float) -> None:
    assert work.roof_us(GPU) == pytest.approx(roof_us)


def test_a_newer_gpu_is_never_slower() -> None:
    for work in works():
        times = [work.roof_us(gpu) for gpu in GPUS]
        assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    ("strategy", "link_bytes", "hops"),
    [
        ("one-shot", 7 * 16 * 8192, 1),
        ("two-shot", 2 * 7 / 8 * 16 * 8192, 2),  # parts to their owners, sums from there
        ("ring", 3 * 7 / 8 * 16 * 8192, 8),  # fp32 around, then the sums
    ],
)
def test_what_a_strategy_sends(strategy: Strategy, link_bytes: float, hops: int) -> None:
    work = matmul_all_reduce(16, 8, strategy)
    assert (work.link_bytes, work.hops) == (link_bytes, hops)


def test_two_shots_of_more_rows_than_slots_hold_end_slice_by_slice() -> None:
    assert matmul_all_reduce(2049, 4, "two-shot").hops == 2 * matmul_all_reduce(2048, 4, "two-shot").hops


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_product_hides_costs_no_time(strategy: Strategy) -> None:
    fast_link = Gpu("hides all", memory_tb_s=1.0, bf16_tflop_s=100, link_gb_s=1e6, host_gb_s=10)
    fused = matmul_all_reduce(64, 4, strategy)
    product = Work("matmul", "", fused.memory_bytes, fused.flops)
    assert fused.roof_us(fast_link) == pytest.approx(product.roof_us(fast_link) + fused.hops * HOP_US)
    in_turn = product.roof_us(GPU) + all_reduce(64, 4, strategy).roof_us(GPU)
    assert fused.roof_us(GPU) < in_turn
