"""How a model's work is divided over devices: which devices, their shares, the plan."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fastserve.config import EngineConfig, given_shares
from fastserve.distributed.devices import Device, find_devices
from fastserve.distributed.gpus import Gpu
from fastserve.distributed.rank_program import OpenModel
from fastserve.distributed.shard_plan import ShardPlan, make_plan
from fastserve.models.config import ModelConfig
from fastserve.worker.device_speeds import measure_shares


@dataclass(frozen=True, slots=True)
class Division:
    model: ModelConfig
    devices: tuple[Device, ...]
    shares: tuple[float, ...] | None  # None: equal
    plan: ShardPlan

    @property
    def cores(self) -> list[list[int]]:
        """Of every device, a core per thread."""
        return [list(device.cores) for device in self.devices]

    @property
    def gpus(self) -> list[Gpu]:
        """Of every device; none where the devices are cores."""
        return [device.gpu for device in self.devices if device.gpu is not None]

    def plan_for(self, devices: Collection[int]) -> ShardPlan:
        """The plan of a part of the devices, which share out what the others held."""
        shares = None if self.shares is None else [self.shares[device] for device in sorted(devices)]
        return make_plan(self.model, len(devices), shares)


def divide(config: EngineConfig, model: OpenModel) -> Division:
    """Measures devices that are cores where nobody has said what their shares are; GPUs count as equal.

    Raises ValueError where there are no such devices, or the model cannot be cut over so many.
    """
    devices = find_devices(config.devices, config.num_threads)
    plan = make_plan(model.config, len(devices))  # says what is wrong before anything is measured
    shares = given_shares(config.shares)
    if shares is None and config.shares == "auto" and len(devices) > 1 and devices[0].gpu is None:
        shares = measure_shares(model.file.path, devices)
    if shares is not None:
        plan = make_plan(model.config, len(devices), shares)
    return Division(model.config, devices, None if shares is None else tuple(shares), plan)
