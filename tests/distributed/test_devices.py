"""Devices are what the user named: so many, sets of cores, NUMA nodes; anything else is refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastserve.distributed import devices
from fastserve.distributed.devices import find_devices


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: list(range(8)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    for node, cores in {0: "0-3", 1: "4-7", 2: "", 10: "8-15"}.items():
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cores + "\n")
    return tmp_path


def cores_of(wanted: int | str, num_threads: int | None = None, **options: Path) -> list[tuple[int, ...]]:
    return [device.cores for device in find_devices(wanted, num_threads, **options)]


def test_a_number_shares_out_the_cores() -> None:
    assert cores_of(2) == cores_of("2") == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert cores_of(2, 1) == [(0,), (4,)]
    assert [device.name for device in find_devices(2, None)] == ["cpu:0-3", "cpu:4-7"]


def test_devices_are_named_by_their_cores() -> None:
    assert cores_of("cpu:0-1,cpu:4+6-7") == [(0, 1), (4, 6, 7)]
    assert cores_of(" cpu:3 , cpu:5", 1) == [(3,), (5,)]


def test_devices_are_named_by_their_nodes(nodes: Path) -> None:
    assert cores_of("numa", nodes=nodes) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert cores_of("numa:1", 2, nodes=nodes) == [(4, 5)]
    assert cores_of("numa", nodes=nodes / "absent") == [tuple(range(8))]


def test_more_devices_than_cores_share_them_unpinned() -> None:
    found = find_devices(9, None)
    assert {device.cores for device in found} == {(-1,)}
    assert len({device.name for device in found}) == 9


@pytest.mark.parametrize(
    ("wanted", "num_threads", "message"),
    [
        ("gpu:0", None, r"devices must be a number, cpu:CORES .* got 'gpu:0'"),
        ("cpu:", None, "devices must be a number"),
        ("cpu:3-1", None, "devices must be a number"),
        ("cpu:0,,cpu:1", None, "devices must be a number"),
        ("-1", None, "devices must be a number"),
        ("0", None, r"devices must be in \[1, 64\], got 0"),
        (65, None, r"devices must be in \[1, 64\], got 65"),
        ("cpu:0-3,cpu:3-5", None, "cores of their own, but cpu:0-3 and cpu:3-5 share 3"),
        ("cpu:6-9", None, r"devices may name cores 0-7 here, got 8-9 in cpu:6-9"),
        ("numa:7", None, "devices may name NUMA nodes 0, 1 here, got 'numa:7'"),
        ("cpu:0-1", 3, r"num_threads must be at most the cores of cpu:0-1 \(2\), got 3"),
        (1, 9, "num_threads must be at most the 8 usable cores, got 9"),
    ],
)
def test_what_is_no_device_is_refused(
    nodes: Path, wanted: int | str, num_threads: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_devices(wanted, num_threads, nodes)
