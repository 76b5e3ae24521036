from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.benchmark.gpu_theory import GPUS, HOP_US, Gpu, Work, table, works

README = Path(__file__).parents[2] / "bench" / "README.md"
GPU = Gpu("a GPU", memory_tb_s=1.0, bf16_tflop_s=100, link_gb_s=100, host_gb_s=10)


def test_the_page_shows_what_the_module_computes() -> None:
    page = README.read_text(encoding="utf-8")
    begin, end = page.index("<!-- gpu theory -->"), page.index("<!-- end -->")
    assert page[begin:end].splitlines()[1:] == table()


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
