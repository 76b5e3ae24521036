"""Shares follow what devices can do: measured once, kept, and cut again where a device is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.config import EngineConfig
from fastserve.distributed.devices import find_devices
from fastserve.distributed.rank_program import open_model
from fastserve.testing.faults import Fault, committing
from fastserve.worker import device_speeds
from fastserve.worker.device_speeds import measure_shares
from fastserve.worker.division import Division, divide


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTSERVE_HOME", str(tmp_path))
    return tmp_path


def divided(path: Path, **options: object) -> Division:
    return divide(EngineConfig(model=str(path), **options), open_model(str(path)))  # type: ignore[arg-type]


def num_heads(division: Division) -> list[int]:
    return [end - begin for begin, end in (shard.heads for shard in division.plan.shards)]


def test_a_device_that_is_slow_gets_less(smollm2_path: Path, home: Path) -> None:
    with committing(Fault(rank=1, action="slow", call=0, amount=6.0)):
        shares = measure_shares(str(smollm2_path), find_devices(2, 1))
    assert shares is not None
    assert shares[0] > 0.7
    assert not list(home.iterdir())  # what a test pretends is not kept


def test_speeds_are_measured_once(smollm2_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def probe(path: str, devices: object) -> list[float]:
        measured.append(path)
        return [30.0, 10.0]

    monkeypatch.setattr(device_speeds, "_probe", probe)
    assert num_heads(divided(smollm2_path, devices=2)) == [7, 2]
    assert len(measured) == device_speeds.MAX_PROBES  # a difference is believed when it shows again
    assert num_heads(divided(smollm2_path, devices=2)) == [7, 2]
    assert len(measured) == device_speeds.MAX_PROBES
    (home / device_speeds.KEPT_IN).write_text("no JSON")
    assert num_heads(divided(smollm2_path, devices=2)) == [7, 2]
    assert len(measured) == 2 * device_speeds.MAX_PROBES


def test_devices_that_are_alike_get_equal_shares(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_speeds, "_probe", lambda path, devices: [10.0, 11.0])
    assert divided(smollm2_path, devices=2).shares is None


def test_devices_that_share_cores_get_equal_shares(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_speeds, "_probe", lambda path, devices: [30.0] + [10.0] * 8)
    monkeypatch.setattr("fastserve.distributed.devices.usable_cores", lambda: [0, 1])
    division = divided(smollm2_path, devices=9)
    assert division.shares is None
    assert num_heads(division) == [1] * 9


def test_devices_that_cannot_be_measured_get_equal_shares(
    smollm2_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert measure_shares(str(tmp_path / "no model"), find_devices(2, 1)) is None
    assert "could not be measured" in caplog.text


def test_shares_that_are_given_are_taken(smollm2_path: Path) -> None:
    division = divided(smollm2_path, devices=3, shares="4,1,4")
    assert num_heads(division) == [4, 1, 4]
    assert num_heads(
        Division(division.model, division.devices, division.shares, division.plan_for([0, 1]))
    ) == [7, 2]
    assert num_heads(divided(smollm2_path, devices=2, shares="equal")) == [5, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 2, "shares": "1,2,3"}, "shares must be 2 positive numbers"),
        (
            {"devices": 2, "shares": "1,-2"},
            "shares must be auto, equal or positive numbers such as 2,1; got '1,-2'",
        ),
        ({"devices": 2, "shares": "fair"}, "got 'fair'"),
        ({"devices": 10}, "devices must be in"),
    ],
)
def test_shares_that_make_no_sense_are_refused(
    smollm2_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        divided(smollm2_path, **options)
