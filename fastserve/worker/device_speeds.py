"""How fast devices are, measured by running some layers of the model itself on each (device_probe.py).

A probe takes about half a second, and all devices are probed at once, as they will work. What was found is kept beside
the models, so the next start cuts the same shares, hence gives the same bits.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from fastserve import _C
from fastserve.distributed.devices import Device
from fastserve.distributed.planned_faults import are_planned
from fastserve.weights.home import fastserve_home

ALIKE = 1.15  # devices closer than that get equal shares: they may be the same
MAX_PROBES = 4
TIMEOUT_S = 60.0
KEPT_IN = "device_speeds.json"
PROBE = "fastserve.worker.device_probe"
log = logging.getLogger("fastserve.group")


def measure_shares(path: str, devices: Sequence[Device]) -> list[float] | None:
    """The devices' shares of the work, for shards that finish together; None: they are alike, or it is not known.

    Devices that share cores are alike: what a probe finds there is which of them the system let run.
    """
    if not all(device.has_own_cores for device in devices):
        return None
    known = _Known(devices)
    speeds = known.read()
    if speeds is None:
        speeds = _measure(path, devices)
        if speeds is None:
            return None
        known.write(speeds)
    return None if _are_alike(speeds) else [speed / sum(speeds) for speed in speeds]


def _are_alike(speeds: Sequence[float]) -> bool:
    return max(speeds) < ALIKE * min(speeds)


def _measure(path: str, devices: Sequence[Device]) -> list[float] | None:
    """Rounds per second of each device. A difference must show again and again: a device may have been disturbed."""
    best = [0.0] * len(devices)
    for _ in range(MAX_PROBES):
        speeds = _probe(path, devices)
        if speeds is None:
            return None
        best = [max(pair) for pair in zip(best, speeds, strict=True)]
        if _are_alike(best):
            break
    return best


class _Known:
    """Speeds of these devices on this machine, measured by this version."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._path = fastserve_home() / KEPT_IN
        names = [[device.name, *device.cores] for device in devices]
        self._key = json.dumps([platform.node(), _C.isa(), _C.__version__, names])

    def read(self) -> list[float] | None:
        return None if are_planned() else self._all().get(self._key)

    def write(self, speeds: list[float]) -> None:
        if are_planned():
            return
        found = self._all()
        found[self._key] = speeds
        scratch = self._path.with_name(f"{KEPT_IN}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(msgspec.json.encode(found))
            scratch.replace(self._path)
        except OSError as error:
            log.warning("the devices' speeds could not be kept: %s", error)

    def _all(self) -> dict[str, list[float]]:
        """Of all machines and devices; none where the file is missing or damaged."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, list[float]])
        except (OSError, msgspec.MsgspecError):
            return {}


def _probe(path: str, devices: Sequence[Device]) -> list[float] | None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", PROBE, path, str(rank), ",".join(map(str, device.cores))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
        )
        for rank, device in enumerate(devices)
    ]
    try:
        for process in processes:  # all at once: loaded, then let go
            assert process.stdout is not None
            process.stdout.readline()
        outputs = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in processes:
            outputs.append(process.communicate(timeout=TIMEOUT_S)[0])
        return [float(output) for output in outputs]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        log.warning("the devices' speeds could not be measured, so they get equal shares: %s", error)
        return None
    finally:
        for process in processes:
            process.kill()
            process.communicate()
