"""`fastserve bench`: how fast a model runs on this machine, against its roofs, and where a step's time goes."""

from __future__ import annotations

import argparse
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastserve.cli.install import require_native
from fastserve.cli.options import ENGINE
from fastserve.cli.settings import Settings, UsageError, add_model
from fastserve.config import EngineConfig

_ENGINE_OPTIONS = ("model", "num_threads", "kv_dtype", "activation_bits", "offline")
OPTIONS = tuple(option for option in ENGINE if option.name in _ENGINE_OPTIONS)
FIGURES = ("prefill", "decode", "drafts", "start", "http")
PROMPTS, BATCHES = "512,2048", "1,16,64"
_DEFAULT_FIGURES = "prefill,decode"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--figures",
        default=_DEFAULT_FIGURES,
        metavar="NAME,NAME",
        help=f"of {', '.join(FIGURES)}; or all ({_DEFAULT_FIGURES})",
    )
    parser.add_argument(
        "--prompts", default=PROMPTS, metavar="N,N", help=f"tokens of the prefills ({PROMPTS})"
    )
    parser.add_argument(
        "--context", type=int, default=128, metavar="N", help="tokens before decode starts (128)"
    )
    parser.add_argument("--new-tokens", type=int, default=32, metavar="N", help="decoded in each round (32)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of which the median counts (5)")
    parser.add_argument(
        "--batches", default=BATCHES, metavar="N,N", help=f"sequences decoded together ({BATCHES})"
    )
    parser.add_argument("--profile", action="store_true", help="show the time of every op of a step")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write the steps for Perfetto (JSON)")


def run(settings: Settings) -> int:
    figures = _figures(settings.figures)
    prompts, batches = _counts("prompts", settings), _counts("batches", settings)
    for name, least in (("context", 1), ("new_tokens", 3), ("rounds", 1)):
        if getattr(settings, name) < least:
            raise UsageError(
                f"--{name.replace('_', '-')} must be at least {least}, got {getattr(settings, name)}"
            )
    if min(prompts) < 2:
        raise UsageError(f"--prompts must be at least 2, got {min(prompts)}")
    config = _phases_config(settings, prompts, batches)
    require_native()
    from fastserve.benchmark.machine import describe_machine
    from fastserve.benchmark.placement import probe

    print(f"{describe_machine()}, cores {probe()}")
    if {"prefill", "decode"} & set(figures):
        _phases(
            settings, config, prompts if "prefill" in figures else [], batches if "decode" in figures else []
        )
    _others(settings, figures)
    return 0


def _phases_config(settings: Settings, prompts: list[int], batches: list[int]) -> EngineConfig:
    longest = max(*(length + 1 for length in prompts), settings.context + settings.new_tokens)
    most = max(batches)
    slots = 2 * most  # KV blocks for twice as many: a request is let in where all that run may still grow
    rows = max(512, slots)
    # While the last prompts are computed, the first sequences decode already: they must not end before all do.
    least = -(-most * settings.context // (rows - most)) + 3
    if settings.new_tokens < least:
        raise UsageError(
            f"--new-tokens must be at least {least} for {most} sequences of {settings.context} tokens to decode "
            f"together, got {settings.new_tokens}"
        )
    with settings.blamed():
        return EngineConfig(
            **settings.pick(OPTIONS),
            max_num_seqs=slots,
            max_num_tokens=rows,
            max_step_ms=math.inf,  # prompts first: decodes are timed when all sequences are there
            max_model_len=longest,
            speculation="off",  # a token of each sequence in each step
        )


def _phases(settings: Settings, config: EngineConfig, prompts: list[int], batches: list[int]) -> None:
    from fastserve.benchmark.model_phases import ModelPhases
    from fastserve.benchmark.roofs import measure_roofs
    from fastserve.benchmark.timeline import table, write_trace
    from fastserve.engine.build import build_engine
    from fastserve.llm import LLM
    from fastserve.worker.local_executor import LocalExecutor

    with settings.blamed():
        engine = build_engine(config)
    with LLM.from_engine(engine) as llm:
        executor = engine.executor
        assert isinstance(executor, LocalExecutor)
        roofs = measure_roofs(executor.cores)
        phases = ModelPhases(llm, executor.program, engine)
        rates = [phases.prefill(length, settings.rounds) for length in prompts]
        rates += [phases.decode(n, settings.context, settings.new_tokens, settings.rounds) for n in batches]
        for rate in rates:
            share = rate.scheduling_share
            scheduling = "" if share is None else f", scheduling {share:.1%} of a step"
            print(f"{rate.name}, {len(executor.cores)} threads: {rate.tokens_per_s:.1f} tokens/s{scheduling}")
            if settings.profile:
                print(table(rate.passes, roofs), end="\n\n")
        if settings.trace:
            write_trace((one for rate in rates for one in rate.passes), settings.trace)


def _others(settings: Settings, figures: list[str]) -> None:
    from fastserve.benchmark import user_figures

    given = settings.pick(OPTIONS)
    options = _flags({name: value for name, value in given.items() if name != "model"})
    if "drafts" in figures:
        with settings.blamed():
            config = EngineConfig(**given)
        for line in user_figures.drafts(config, settings.rounds):
            print(line)
    if "start" in figures:
        print(user_figures.first_token(given["model"], options, settings.rounds))
    if "http" in figures:
        for line in user_figures.clients(given["model"], options):
            print(line)


def _flags(values: dict[str, Any]) -> list[str]:
    """As `fastserve serve` takes them."""
    flags = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value not in (None, False):
            flags += [flag, str(value)]
    return flags


def _figures(text: str) -> list[str]:
    names = list(FIGURES) if text == "all" else text.split(",")
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise UsageError(f"--figures must be of {', '.join(FIGURES)}, or all; got {text!r}")
    if "http" in names and not find_spec("aiohttp"):
        raise UsageError("the figure http needs the package aiohttp: pip install aiohttp")
    return names


def _counts(name: str, settings: Settings) -> list[int]:
    text = settings[name]
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(f"--{name} must be numbers above zero with commas between, got {text!r}")
    return counts
