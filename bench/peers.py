"""Ours against llama.cpp: the same file, the same number of threads, in turns in one run.

python bench/peers.py [FILE.gguf] --devices 1 --threads 2 --rounds 9
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastserve import _C
from fastserve.benchmark.machine import Machine, describe_machine
from fastserve.benchmark.peers import LlamaCpp, Ours, Peer, llama_cpp_survives, model_work, random_prompt
from fastserve.benchmark.placement import probe
from fastserve.benchmark.report import Line
from fastserve.benchmark.roofs import Roofs, Work, measure_roofs
from fastserve.benchmark.run_file import write_run
from fastserve.benchmark.turns import Buckets, take_timed_turns
from fastserve.distributed.cores import usable_cores
from fastserve.weights.store import resolve_model


def main() -> None:
    arguments = parse_arguments()
    path = resolve_model(arguments.model)
    cores = usable_cores()
    threads = arguments.threads or len(cores)
    if threads % arguments.devices:
        raise SystemExit(f"--threads must be a multiple of --devices, got {threads} and {arguments.devices}")
    place = describe_machine(), measure_roofs(cores[:threads])
    length = max(arguments.prompt, arguments.context + arguments.new_tokens) + 8
    per_device = threads // arguments.devices
    ours = Ours(
        path,
        devices=arguments.devices,
        num_threads=per_device,
        max_model_len=length,
        activation_bits=arguments.activation_bits,
    )
    repacking = llama_cpp_survives(path)
    if not repacking:
        print(
            "llama.cpp crashes on this machine with the kernels it prefers: it runs without repacked weights"
        )
    theirs = LlamaCpp(path, num_threads=threads, max_model_len=length, repacking=repacking)
    try:
        lines = compare((ours, theirs), arguments, path, place)
    finally:
        ours.close()
        theirs.close()
    if arguments.json:
        write_run(arguments.json, lines, place[1])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", default="smollm2-135m", help="a known model's name or a GGUF file"
    )
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None, help="in all; by default the usable cores")
    parser.add_argument("--activation-bits", type=int, default=14, help="ours: 14 or 8 (llama.cpp: 8)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--context", type=int, default=128, help="tokens before decode starts")
    parser.add_argument("--new-tokens", type=int, default=32, help="decoded per round")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, help="file for the lines, for bench/report.py")
    return parser.parse_args()


def compare(
    peers: tuple[Peer, Peer], arguments: argparse.Namespace, path: Path, place: tuple[Machine, Roofs]
) -> list[Line]:
    ours, theirs = peers
    vocab_size = _C.GgufFile(str(path)).tensors["token_embd.weight"].n
    prompts = random.Random(arguments.seed)

    def decode(peer: Peer) -> float:
        prompt = random_prompt(prompts, arguments.context, vocab_size)
        return peer.seconds_per_token(prompt, arguments.new_tokens)

    def prefill(peer: Peer) -> float:
        return peer.seconds_to_first(random_prompt(prompts, arguments.prompt, vocab_size)) / arguments.prompt

    prefill_work = model_work(path, num_tokens=arguments.prompt)
    cases: list[tuple[str, str, Callable[[Peer], float], Work]] = [
        ("decode", f"batch=1 context={arguments.context}", decode, model_work(path, num_tokens=1)),
        (
            "prefill",
            f"prompt={arguments.prompt}",
            prefill,
            Work(
                prefill_work.num_bytes / arguments.prompt,
                prefill_work.num_operations / arguments.prompt,
                prefill_work.arithmetic,
            ),
        ),
    ]
    lines = []
    for op, shape, measure, work in cases:
        measure(ours), measure(theirs)  # the first of everything: page faults, thread pools
        contestants = {peer.name: partial(measure, peer) for peer in (ours, theirs)}
        buckets = take_timed_turns(contestants, rounds=arguments.rounds, probe=probe)
        lines += report((op, shape, work), buckets, peers, path, place)
    return lines


def report(
    case: tuple[str, str, Work],
    buckets: Buckets,
    peers: tuple[Peer, Peer],
    path: Path,
    place: tuple[Machine, Roofs],
) -> list[Line]:
    (op, shape, work), (ours, theirs), (machine, roofs) = case, peers, place
    print(f"\n{op} {shape}: seconds per token")
    for state, found in buckets.seconds.items():
        print(f"  {state}: " + ", ".join(f"{name} x{len(seconds)}" for name, seconds in found.items()))
    lines = []
    for state in buckets.comparable((ours.name, theirs.name)):
        ratio = buckets.ratio(state, theirs.name, ours.name)
        for peer in peers:
            seconds = buckets.summary(state, peer.name)
            line = Line(
                machine=machine,
                state=state,
                op=op,
                shape=shape,
                dtype=path.stem,
                backend=peer.name,
                seconds=seconds,
                gbps=work.num_bytes / seconds.median / 1e9,
                gops=work.num_operations / seconds.median / 1e9,
                roof_share=roofs.share(work, seconds.median),
                baseline=theirs.name if peer is ours else None,
                ratio=ratio if peer is ours else None,
            )
            print(f"{1 / seconds.median:8.1f} tokens/s  {line}")
            lines.append(line)
    return lines


if __name__ == "__main__":
    main()
