"""`fastserve plan`: how a model would be divided, before anything is loaded."""

from __future__ import annotations

import argparse

from fastserve.cli.install import require_native
from fastserve.cli.options import ENGINE
from fastserve.cli.settings import Settings, add_model
from fastserve.config import EngineConfig

OPTIONS = tuple(
    option for option in ENGINE if option.name in ("model", "devices", "shares", "num_threads", "offline")
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)


def run(settings: Settings) -> int:
    with settings.blamed():
        config = EngineConfig(**settings.pick(OPTIONS))
    require_native()
    from fastserve.distributed.rank_program import open_model
    from fastserve.distributed.shard_plan import describe
    from fastserve.weights.store import resolve_model
    from fastserve.worker.division import divide

    model = open_model(str(resolve_model(config.model, offline=config.offline)))
    with settings.blamed():
        division = divide(config, model)
    print(describe(division.plan, [device.name for device in division.devices]))
    return 0
