"""`fastserve bench`: how fast a model runs on this machine, against its roofs, and where a step's time goes."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from fastserve.cli.install import require_native
from fastserve.cli.options import ENGINE
from fastserve.cli.settings import Settings, UsageError, add_model
from fastserve.config import EngineConfig

_ENGINE_OPTIONS = ("model", "num_threads", "kv_dtype", "activation_bits", "offline")
OPTIONS = tuple(option for option in ENGINE if option.name in _ENGINE_OPTIONS)
BATCHES = "1,16,64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens of the prefill (512)")
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
    batches = _batches(settings.batches)
    for name, least in (("prompt", 2), ("context", 1), ("new_tokens", 3), ("rounds", 1)):
        if getattr(settings, name) < least:
            raise UsageError(
                f"--{name.replace('_', '-')} must be at least {least}, got {getattr(settings, name)}"
            )
    longest = max(settings.prompt + 1, settings.context + settings.new_tokens)
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
        config = EngineConfig(
            **settings.pick(OPTIONS),
            max_num_seqs=slots,
            max_num_tokens=rows,
            max_step_ms=math.inf,  # prompts first: decodes are timed when all sequences are there
            max_model_len=longest,
            speculation="off",  # a token of each sequence in each step
        )
    require_native()
    from fastserve.benchmark.machine import describe_machine
    from fastserve.benchmark.model_phases import ModelPhases
    from fastserve.benchmark.placement import probe
    from fastserve.benchmark.roofs import measure_roofs
    from fastserve.benchmark.timeline import table, write_trace
    from fastserve.engine.build import build_engine
    from fastserve.llm import LLM
    from fastserve.worker.executor import LocalExecutor

    with settings.blamed():
        engine = build_engine(config)
    with LLM.from_engine(engine) as llm:
        executor = engine.executor
        assert isinstance(executor, LocalExecutor)
        roofs = measure_roofs(executor.cores)
        print(f"{describe_machine()}, {len(executor.cores)} threads, cores {probe()}")
        phases = ModelPhases(llm, executor.program, vocab_size=executor.vocab_size)
        rates = [phases.prefill(settings.prompt, settings.rounds)]
        rates += [phases.decode(n, settings.context, settings.new_tokens, settings.rounds) for n in batches]
        for rate in rates:
            print(f"{rate.name}: {rate.tokens_per_s:.1f} tokens/s")
            if settings.profile:
                print(table(rate.passes, roofs), end="\n\n")
        if settings.trace:
            write_trace((one for rate in rates for one in rate.passes), settings.trace)
    return 0


def _batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise UsageError(f"--batches must be numbers above zero with commas between, got {text!r}")
    return batches
