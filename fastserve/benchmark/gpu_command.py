"""The steps of bench/gpu.sh that are Python: each writes its lines as it goes, for a step may be cut short."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path
from typing import IO, Any

import torch

from fastserve.benchmark.checkout import commit
from fastserve.benchmark.gpu_cases import cases
from fastserve.benchmark.gpu_engine import EngineRun
from fastserve.benchmark.gpu_lines import Device, Failure, run_case
from fastserve.benchmark.gpu_roofs import measure_roofs
from fastserve.benchmark.gpu_timer import ROUNDS, Clock, CudaClock, WallClock
from fastserve.config import DEFAULT_MODEL
from fastserve.errors import ModelNotFoundError
from fastserve.weights.store import resolve_model

GRACE_S = 60  # for the last case before the deadline


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench/gpu.py", description=__doc__)
    parser.add_argument("what", choices=("ops", "collectives", "model"))
    parser.add_argument("--lines", type=Path, required=True, help="file for the lines, as JSON, one each")
    parser.add_argument("--budget-s", type=float, default=600.0, help="no case is begun after that")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a name, or a path to a .gguf file; for model")
    options = parser.parse_args()
    deadline = time.monotonic() + options.budget_s
    # Rank 0 of several writes; the others' lines are the same.
    path = options.lines if os.environ.get("RANK", "0") == "0" else Path(os.devnull)
    with path.open("w", encoding="utf-8") as file:
        if options.what == "collectives":
            run_collectives(file, deadline)
        elif options.what == "model":
            run_model(file, deadline, options.model)
        else:
            where, clock = torch.device("cuda", 0), CudaClock()
            run_ops(file, deadline, describe_device(where, clock), clock, where)


def run_ops(
    file: IO[str],
    deadline: float,
    device: Device,
    clock: Clock,
    where: torch.device,
    *,
    rounds: int = ROUNDS,
) -> None:
    """Every case that is begun before the deadline, of time.monotonic."""
    write(file, device)
    for case in cases():
        work = case.work
        if time.monotonic() > deadline:
            write(file, Failure("ops", work.op, work.shape, "all", "not reached in time"))
            continue
        try:
            lines = run_case(case, device, clock, where=where, rounds=rounds)
        except Exception as error:  # operands that do not fit, say: the other cases are measured
            lines = [Failure("ops", work.op, work.shape, "all", f"{type(error).__name__}: {error}")]
        for line in lines:
            write(file, line)


def run_collectives(file: IO[str], deadline: float) -> None:
    import torch.distributed as dist

    from fastserve.benchmark.gpu_collectives import run_cases
    from fastserve.distributed.group import init_group

    # A rank that waits for one that is gone ends with its kernels.
    signal.alarm(int(deadline - time.monotonic()) + GRACE_S)
    with init_group() as group:
        where, clock = torch.device("cuda", group.rank), CudaClock()
        torch.cuda.set_device(where)
        dist.init_process_group("nccl", device_id=where)
        # Rank 0's roofs count, and are measured while the others wait.
        if group.rank:
            dist.barrier()
        device = describe_device(where, clock)
        if group.rank == 0:
            dist.barrier()
        write(file, device)
        for line in run_cases(group, device, clock, where=where, deadline=deadline):
            write(file, line)
        dist.destroy_process_group()


def run_model(file: IO[str], deadline: float, model: str) -> None:
    try:
        path = resolve_model(model, offline=True)
    except ModelNotFoundError as error:
        write(file, Failure("model", "all", model, "all", f"left out: {error}"))
        return
    device = describe_device(torch.device("cuda", 0), CudaClock())
    torch.cuda.empty_cache()  # engines are other processes
    write(file, device)
    for line in EngineRun(path, device, WallClock()).lines(deadline):
        write(file, line)


def describe_device(where: torch.device, clock: CudaClock) -> Device:
    found = torch.cuda.get_device_properties(where)
    return Device(
        found.name,
        torch.cuda.device_count(),
        f"sm_{found.major}{found.minor}",
        found.L2_cache_size,
        measure_roofs(where, clock),
        commit(),
    )


def write(file: IO[str], entry: Any) -> None:
    file.write(json.dumps(entry.as_dict()) + "\n")
    file.flush()
    if file.name != os.devnull:
        print(getattr(entry, "line", entry), flush=True)
