"""`python -m fastserve.benchmark`: the machine, how its cores are placed, and its roofs."""

from __future__ import annotations

import argparse

from fastserve import _C
from fastserve.benchmark.machine import describe_machine
from fastserve.benchmark.placement import probe
from fastserve.benchmark.roofs import ARITHMETIC, ROUND_US, WORKING_SET_BYTES, beyond_caches_bytes
from fastserve.benchmark.summary import Summary
from fastserve.distributed.cores import usable_cores

BYTES_PER_CORE = (1 << 20, 8 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastserve.benchmark", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    cores = usable_cores()
    machine = describe_machine()
    print(f"{machine}, {machine.isa}, commit {machine.commit}")
    print(f"placement: {', '.join(str(probe(cores)) for _ in range(5))}")
    for num_threads in range(1, len(cores) + 1):
        team = cores[:num_threads]
        for kind in ARITHMETIC:
            _print(f"{kind} peak", num_threads, _C.measure_peak(kind, team, ROUND_US, rounds), "GOP/s")
        sizes = [size * num_threads for size in BYTES_PER_CORE] + [WORKING_SET_BYTES, beyond_caches_bytes()]
        for size in sizes:
            _print(f"read {size >> 10:,} KiB", num_threads, _C.measure_read(team, size, rounds), "GB/s")
    print(f"placement: {', '.join(str(probe(cores)) for _ in range(5))}")


def _print(what: str, num_threads: int, rates: list[float], unit: str) -> None:
    found = Summary.of(rates)
    best = f"best {max(rates):8.1f} {unit}"
    print(f"{what:>20}  {num_threads} threads  {best}  median {found.median:8.1f} +-{found.spread:.0%}")


main()
