"""Decode with drafts against plain decode, on code, repeated text and prose: `python bench/speculation.py`."""

from __future__ import annotations

import argparse

from fastserve.benchmark.machine import describe_machine
from fastserve.benchmark.placement import probe
from fastserve.benchmark.speculation import KINDS, SpeculationBenchmark
from fastserve.config import DEFAULT_MODEL, EngineConfig
from fastserve.request import SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=7, help="of each text")
    parser.add_argument("--together", type=int, default=1, help="requests that run at a time")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    arguments = parser.parse_args()
    params = SamplingParams(temperature=arguments.temperature, seed=0, max_tokens=arguments.new_tokens)
    config = EngineConfig(model=arguments.model, devices=arguments.devices, max_model_len=2048)
    benchmark = SpeculationBenchmark(config, params, together=arguments.together)
    print(f"{describe_machine()}, cores {probe()}")
    for kind in arguments.kinds:
        print(benchmark.compare(kind, arguments.rounds), flush=True)
    benchmark.close()


if __name__ == "__main__":
    main()
