"""What `devices` names: so many equal parts of the cores at hand, sets of cores, NUMA nodes, or GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastserve.distributed.cores import assign_cores, usable_cores
from fastserve.distributed.gpus import HOW as HOW_GPUS
from fastserve.distributed.gpus import Gpu, find_gpus, names_gpus
from fastserve.distributed.shard_plan import MAX_DEVICES

NODES = Path("/sys/devices/system/node")
HOW = "a number, cpu:CORES (0-15, or 0-3+8-11), numa:NODE, or numa for all nodes; several with commas between"


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    cores: tuple[int, ...]  # of each of its threads; -1: not pinned
    gpu: Gpu | None = None  # then the cores only load its weights

    @property
    def has_own_cores(self) -> bool:
        return self.cores[0] >= 0


def find_devices(wanted: int | str, num_threads: int | None, nodes: Path = NODES) -> tuple[Device, ...]:
    """The devices that `wanted` names. num_threads: of each; by default one per core.

    Raises ValueError saying what was wrong and what would be right, BackendError where GPUs cannot be used here.
    """
    if names_gpus(wanted):
        return _gpu_devices(str(wanted), num_threads)
    count = int(wanted) if isinstance(wanted, int) or wanted.strip().isdecimal() else None
    if count is not None:
        if not 1 <= count <= MAX_DEVICES:
            raise ValueError(f"devices must be in [1, {MAX_DEVICES}], got {count}")
        usable = usable_cores()
        # More threads than cores wait for each other at every barrier.
        if num_threads is not None and num_threads > len(usable):
            raise ValueError(f"num_threads must be at most the {len(usable)} usable cores, got {num_threads}")
        shares = assign_cores(usable, count, num_threads)
        return tuple(
            Device(f"cpu:{_text(cores)}" if cores[0] >= 0 else f"cpu, shared {i}", tuple(cores))
            for i, cores in enumerate(shares)
        )
    named = [device for name in str(wanted).split(",") for device in _named(name.strip(), nodes)]
    _check_disjoint(named)
    usable = sorted(os.sched_getaffinity(0))
    for device in named:
        if foreign := sorted(set(device.cores) - set(usable)):
            raise ValueError(
                f"devices may name cores {_text(usable)} here, got {_text(foreign)} in {device.name}"
            )
    return tuple(Device(device.name, _threads(device, num_threads)) for device in named)


def _gpu_devices(wanted: str, num_threads: int | None) -> tuple[Device, ...]:
    gpus = find_gpus(wanted)
    shares = assign_cores(usable_cores(), len(gpus), num_threads)
    return tuple(
        Device(f"cuda:{gpu.index}", tuple(cores), gpu) for gpu, cores in zip(gpus, shares, strict=True)
    )


def _named(name: str, nodes: Path) -> list[Device]:
    kind, _, which = name.partition(":")
    if kind == "cpu" and which:
        return [Device(name, tuple(_cores(which, name)))]
    if kind == "numa":
        found = _numa_nodes(nodes)
        if not which:
            return [Device(f"numa:{node}", cores) for node, cores in found.items()]
        if which in found:
            return [Device(name, found[which])]
        raise ValueError(f"devices may name NUMA nodes {', '.join(found)} here, got {name!r}")
    raise ValueError(f"devices must be {HOW}, or {HOW_GPUS}; got {name!r}")


def _cores(text: str, name: str) -> list[int]:
    cores: set[int] = set()
    for part in text.replace(",", "+").split("+"):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ValueError(f"devices must be {HOW}; got {name!r}")
        cores.update(range(first, last + 1))
    return sorted(cores)


def _numa_nodes(nodes: Path) -> dict[str, tuple[int, ...]]:
    """Nodes by number, with their cores that this process may use; those that have none are left out."""
    usable = os.sched_getaffinity(0)
    found = {}
    for path in sorted(nodes.glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        text = (path / "cpulist").read_text().strip()
        cores = tuple(core for core in _cores(text, path.name) if core in usable) if text else ()
        if cores:
            found[path.name[4:]] = cores
    return found or {"0": tuple(sorted(usable))}


def _check_disjoint(devices: Sequence[Device]) -> None:
    if len(devices) > MAX_DEVICES:
        raise ValueError(f"devices must be at most {MAX_DEVICES}, got {len(devices)}")
    owner: dict[int, str] = {}
    for device in devices:
        for core in device.cores:
            if core in owner:
                raise ValueError(
                    f"devices must have cores of their own, but {owner[core]} and {device.name} share {core}"
                )
            owner[core] = device.name


def _threads(device: Device, num_threads: int | None) -> tuple[int, ...]:
    if num_threads is None:
        return device.cores
    if num_threads > len(device.cores):
        raise ValueError(
            f"num_threads must be at most the cores of {device.name} ({len(device.cores)}), got {num_threads}"
        )
    return device.cores[:num_threads]


def _text(cores: Iterable[int]) -> str:
    """Cores as they are written: 0-3+8."""
    runs: list[tuple[int, int]] = []
    for core in cores:
        if runs and core == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], core)
        else:
            runs.append((core, core))
    return "+".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
