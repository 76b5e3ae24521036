"""`fastserve plan`: how a model would be divided and what its KV cache would hold, before anything is loaded."""

from __future__ import annotations

import argparse

from fastserve.cli.install import require_native
from fastserve.cli.options import ENGINE
from fastserve.cli.settings import Settings, add_model
from fastserve.config import EngineConfig

_ENGINE_OPTIONS = (
    "model",
    "devices",
    "shares",
    "num_threads",
    "offline",
    "max_num_tokens",
    "max_num_seqs",
    "max_model_len",
    "kv_cache_bytes",
    "kv_dtype",
)
OPTIONS = tuple(option for option in ENGINE if option.name in _ENGINE_OPTIONS)


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
    from fastserve.worker.sizing import describe_kv

    model = open_model(str(resolve_model(config.model, offline=config.offline)))
    with settings.blamed():
        division = divide(config, model)
    print(describe(division.plan, [device.name for device in division.devices]))
    with settings.blamed():
        print(describe_kv(config, model, division))
    return 0
