"""A share is the time that the machine allows over the time it took."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve import _C
from fastserve.benchmark.placement import Placement
from fastserve.benchmark.roofs import ARITHMETIC, Roofs, Work, beyond_caches_bytes

ROOFS = Roofs("avx512", 2, 20.0, {"f32": 200.0, "bf16": 400.0, "int8": 800.0}, Placement("near", 57.0))


def test_work_that_reads_much_is_bound_by_memory() -> None:
    work = Work(num_bytes=20e6, num_operations=1e6, arithmetic="f32")
    assert ROOFS.seconds(work) == pytest.approx(1e-3)
    assert ROOFS.share(work, 2e-3) == pytest.approx(0.5)


@pytest.mark.parametrize(("arithmetic", "seconds"), [("f32", 4e-3), ("bf16", 2e-3), ("int8", 1e-3)])
def test_work_that_computes_much_is_bound_by_its_arithmetic(arithmetic: str, seconds: float) -> None:
    work = Work(num_bytes=1e3, num_operations=0.8e9, arithmetic=arithmetic)  # type: ignore[arg-type]
    assert ROOFS.seconds(work) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "mebibytes"), [("16384K", 128), ("200M", 400), ("480M", 960), ("8G", 1024), ("nonsense", 256)]
)
def test_buffer_is_twice_the_last_cache_within_reason(tmp_path: Path, text: str, mebibytes: int) -> None:
    size = tmp_path / "size"
    size.write_text(text + "\n")
    assert beyond_caches_bytes(size) == mebibytes << 20


def test_buffer_of_an_unknown_cache_is_still_large(tmp_path: Path) -> None:
    assert beyond_caches_bytes(tmp_path / "missing") == 256 << 20


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_every_arithmetic_has_a_roof(kind: str) -> None:
    rates = _C.measure_peak(kind, [-1, -1], round_us=50, rounds=2)
    assert len(rates) == 2
    assert min(rates) > 0


def test_reading_gives_a_rate_per_round() -> None:
    rates = _C.measure_read([-1, -1], num_bytes=1 << 16, rounds=3)
    assert len(rates) == 3
    assert min(rates) > 0


def test_wrong_measurements_are_refused() -> None:
    with pytest.raises(ValueError, match="kind must be f32, bf16 or int8, got f64"):
        _C.measure_peak("f64", [-1], round_us=1, rounds=1)
    with pytest.raises(ValueError, match="cores must name at least one"):
        _C.measure_read([], num_bytes=4096, rounds=1)
    with pytest.raises(ValueError, match="bytes must be >= 512 per core, got 4"):
        _C.measure_read([-1], num_bytes=4, rounds=1)
    with pytest.raises(ValueError, match="rounds must be >= 1, got 0"):
        _C.measure_read([-1], num_bytes=4096, rounds=0)
    with pytest.raises(ValueError, match="ping_pongs must be >= 1, got 0"):
        _C.measure_one_way_ns(0, 1, 0)
