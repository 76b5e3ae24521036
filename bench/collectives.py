"""All-reduce of two ranks, ours against gloo through torch, and the fused matmul_all_reduce against its two halves.

python bench/collectives.py --rounds 15

Every rank is a process whose main thread is pinned to one core. Rank 0 probes the cores before and after each
batch while rank 1 sleeps. `fastserve` is the public call on a tensor, `exchange` what lies below it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, distributed

from fastserve import _C, ops
from fastserve.benchmark.machine import Machine, describe_machine
from fastserve.benchmark.placement import Placement, classify, probe
from fastserve.benchmark.report import Line, duration
from fastserve.benchmark.turns import Buckets, take_timed_turns
from fastserve.distributed.cores import usable_cores
from fastserve.distributed.group import Group, init_group
from fastserve.ops.packed_weight import WeightType

NUM_RANKS = 2
SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)
ROW_FLOATS = 1024  # of the matrix that a size is reduced as
SYMMETRIC_BYTES = 32 << 20
GLOO_TIMEOUT = timedelta(seconds=60)
MATMULS: tuple[tuple[str, int, int, WeightType], ...] = (  # model and layer, N, K of both ranks together
    ("SmolLM2 o", 576, 576, "q4m"),
    ("SmolLM2 down", 576, 1536, "q4m"),
    ("8B down", 4096, 14336, "bf16"),
)
MATMUL_ROWS = (1, 32, 512)


def main() -> None:
    arguments = parse_arguments()
    if "RANK" in os.environ:
        run_rank(arguments)
    else:
        start_ranks()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-ms", type=float, default=5.0, help="about the length of a batch")
    parser.add_argument("--max-bytes", type=int, default=SIZES[-1])
    parser.add_argument("--only", choices=("all_reduce", "matmul_all_reduce"), default=None)
    parser.add_argument("--json", type=Path, default=None, help="file for the lines")
    return parser.parse_args()


def start_ranks() -> None:
    """This script once per rank, with torchrun's variables; ends with the first code that is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        run = {
            "WORLD_SIZE": str(NUM_RANKS),
            "LOCAL_WORLD_SIZE": str(NUM_RANKS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
            "GLOO_SOCKET_IFNAME": "lo",
            "STORE": f"{folder}/store",
        }
        ranks = [
            subprocess.Popen(
                [sys.executable, *sys.argv],
                env={**os.environ, **run, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(NUM_RANKS)
        ]
        codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")


@dataclass(frozen=True, slots=True)
class Rank:
    """What both ranks go through together. Gloo's broadcast is their signal: who waits for it sleeps."""

    group: Group
    cores: list[int]

    def probe(self) -> Placement:
        """Rank 0 measures; the state is the same to both, so that they keep the same buckets."""
        measured = torch.zeros(1, dtype=torch.float64)
        if self.group.rank == 0:
            measured[0] = probe(self.cores).one_way_ns or -1.0
        distributed.broadcast(measured, 0)
        one_way_ns = float(measured[0])
        return Placement(classify(one_way_ns if one_way_ns > 0 else None))

    def batch(self, call: Callable[[], object], calls: int) -> float:
        """Seconds per call on this rank, from a common start."""
        call()
        self.group.barrier()
        start = perf_counter()
        for _ in range(calls):
            call()
        return (perf_counter() - start) / calls

    def turns(self, contestants: dict[str, Callable[[], object]], arguments: argparse.Namespace) -> Buckets:
        batches = {}
        for name, call in contestants.items():
            self.batch(call, 3)
            # The slower rank's view decides for both: they must make the same number of calls.
            seconds = torch.tensor([self.batch(call, 3)], dtype=torch.float64)
            distributed.all_reduce(seconds, op=distributed.ReduceOp.MAX)
            calls = max(1, min(1000, round(arguments.batch_ms / 1e3 / float(seconds[0]))))
            batches[name] = partial(self.batch, call, calls)
        return take_timed_turns(batches, rounds=arguments.rounds, probe=self.probe)


def run_rank(arguments: argparse.Namespace) -> None:
    rank = int(os.environ["RANK"])
    cores, machine = usable_cores(), describe_machine()
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{os.environ['STORE']}",
        rank=rank,
        world_size=NUM_RANKS,
        timeout=GLOO_TIMEOUT,
    )
    distributed.all_reduce(torch.zeros(1))
    if len(cores) >= NUM_RANKS:
        os.sched_setaffinity(0, {cores[rank]})  # this thread alone: gloo's own threads stay free
    with init_group(symmetric_bytes=SYMMETRIC_BYTES) as group:
        _C.ops.set_num_threads(1)
        lines = Lines(Rank(group, cores[:NUM_RANKS]), arguments, machine)
        if arguments.only != "matmul_all_reduce":
            lines.all_reduce()
        if arguments.only != "all_reduce":
            lines.matmul_all_reduce()
    distributed.destroy_process_group()
    if rank == 0 and arguments.json:
        arguments.json.write_text(json.dumps([line.as_dict() for line in lines.found], indent=1))


class Lines:
    """Measures, and on rank 0 prints and keeps the lines."""

    def __init__(self, rank: Rank, arguments: argparse.Namespace, machine: Machine) -> None:
        self.found: list[Line] = []
        self._rank, self._arguments, self._machine = rank, arguments, machine

    def all_reduce(self) -> None:
        for size in SIZES:
            if size > self._arguments.max_bytes:
                continue
            ours, native, theirs = (torch.zeros(size // 4 // ROW_FLOATS, ROW_FLOATS) for _ in range(3))
            self._check(ours)
            contestants: dict[str, Callable[[], object]] = {
                "fastserve": partial(self._rank.group.all_reduce, ours),
                "exchange": partial(
                    self._rank.group.exchange.all_reduce, native.data_ptr(), native.shape[0], native.shape[1]
                ),
                "gloo": partial(distributed.all_reduce, theirs),
            }
            buckets = self._rank.turns(contestants, self._arguments)
            self._report("all_reduce", f"{size >> 10} KB", "f32", buckets, size)

    def matmul_all_reduce(self) -> None:
        group = self._rank.group
        for layer, n, k, weight_type in MATMULS:
            packed = ops.pack(torch.randn(n, k // NUM_RANKS), weight_type)
            for rows in MATMUL_ROWS:
                x = torch.randn(rows, k // NUM_RANKS)

                def halves(x: Tensor = x, packed: ops.PackedWeight = packed) -> None:
                    ops.all_reduce(ops.matmul(x, packed), group)

                contestants: dict[str, Callable[[], object]] = {
                    "fastserve": partial(ops.matmul_all_reduce, x, packed, group),
                    "matmul, then all_reduce": halves,
                }
                buckets = self._rank.turns(contestants, self._arguments)
                shape = f"{layer} M={rows} N={n} K={k // NUM_RANKS} a rank"
                self._report("matmul_all_reduce", shape, weight_type, buckets, None)

    def _check(self, x: Tensor) -> None:
        x.fill_(self._rank.group.rank + 1.0)
        self._rank.group.all_reduce(x)
        assert torch.equal(x, torch.full_like(x, 3.0)), "the ranks did not sum"
        x.zero_()  # so that sums of sums stay finite

    def _report(self, op: str, shape: str, dtype: str, buckets: Buckets, num_bytes: int | None) -> None:
        if self._rank.group.rank != 0:
            return
        *names, baseline = next(iter(buckets.seconds.values()))
        states = buckets.comparable((*names, baseline))
        if not states:
            print(f"{op} {shape}: no state in which all were measured; more --rounds", flush=True)
        for state, name in product(states, names):
            seconds = buckets.summary(state, name)
            line = Line(
                machine=self._machine,
                state=state,
                op=op,
                shape=shape,
                dtype=dtype,
                backend=f"{name} {self._machine.isa} {NUM_RANKS} ranks",
                seconds=seconds,
                gbps=None if num_bytes is None else num_bytes / seconds.median / 1e9,
                baseline=f"{baseline} ({duration(buckets.summary(state, baseline).median)})",
                ratio=buckets.ratio(state, baseline, name),
            )
            self.found.append(line)
            print(line, flush=True)


if __name__ == "__main__":
    main()
