"""`fastserve serve` under closed loops of streaming clients.

python bench/serving.py --devices 2 --clients 16 --requests 64
python bench/serving.py --devices 2 --clients 16 --kill-every 5 --seconds 300

The second one kills a rank every so often, and says whether a request failed and what the server holds at the end.
--url measures a server that runs already, of whatever make, with the same clients.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import httpx
import psutil

from fastserve.benchmark.machine import describe_machine
from fastserve.benchmark.peers import random_prompt
from fastserve.benchmark.placement import probe
from fastserve.benchmark.serving import ServingFigures, closed_loops, stream

END_TIMEOUT_S = 60
REQUEST_TIMEOUT_S = 600
VOCAB_SIZE = 30_000  # ids below it are words in any model's vocabulary


def main() -> None:
    arguments = parse_arguments()
    prompts = random.Random(arguments.seed)
    wanted = [
        random_prompt(prompts, arguments.prompt_tokens, VOCAB_SIZE)
        for _ in range(arguments.requests + arguments.clients)
    ]
    machine, before = describe_machine(), probe()
    if arguments.url:
        figures, server = asyncio.run(measure(arguments.url, wanted, arguments)), arguments.url
    elif arguments.kill_every:
        with running_server(arguments) as (url, _, process):
            print(machine, asyncio.run(soak(url, process, arguments)), machine.commit, sep=" | ")
        return
    else:
        with running_server(arguments) as (url, ready_s, process):
            figures = asyncio.run(measure(url, wanted, arguments))
            server = f"{arguments.devices} devices, ready after {ready_s:.2f} s, {resident_mib(process)} MiB"
    after = probe()
    load = f"{arguments.clients} clients, {arguments.prompt_tokens} in / {arguments.max_tokens} out"
    print(
        f"{machine} | {before.state} -> {after.state} | serve | {load} | {server} | {figures} | {machine.commit}"
    )
    if arguments.json:
        record = {"machine": dataclasses.asdict(machine), "load": load, "server": server}
        arguments.json.write_text(json.dumps({**record, **dataclasses.asdict(figures)}, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64, help="in all, besides one per client to warm up")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", default=None, help="of a server that runs already")
    parser.add_argument(
        "--serve-option", action="append", default=[], help="passed on, e.g. --serve-option=--policy=fcfs"
    )
    parser.add_argument("--kill-every", type=float, default=None, help="seconds between two kills of a rank")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long ranks are killed")
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    return parser.parse_args()


@contextmanager
def running_server(arguments: argparse.Namespace) -> Iterator[tuple[str, float, subprocess.Popen[str]]]:
    """(url, seconds to its ready line, process) of a server on a free port; it is ended afterwards."""
    command = [sys.executable, "-m", "fastserve", "serve", arguments.model, "--port", "0"]
    command += ["--devices", str(arguments.devices), *arguments.serve_option]
    start = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise SystemExit(f"the server did not start (exit code {process.wait()})")
        yield found[0], perf_counter() - start, process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()


def resident_mib(process: subprocess.Popen[str]) -> int:
    """Proportional share of memory of the server and its ranks: what they share counts once."""
    root = psutil.Process(process.pid)
    members = [root, *root.children(recursive=True)]
    return int(sum(member.memory_full_info().pss for member in members)) >> 20


async def measure(url: str, prompts: list[list[int]], arguments: argparse.Namespace) -> ServingFigures:
    limits = httpx.Limits(max_connections=arguments.clients)
    async with httpx.AsyncClient(
        base_url=url, timeout=REQUEST_TIMEOUT_S, limits=limits, trust_env=False
    ) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        warm, timed = prompts[: arguments.clients], prompts[arguments.clients :]
        load = {"model": model, "num_clients": arguments.clients, "max_tokens": arguments.max_tokens}
        await closed_loops(client, warm, **load)
        return ServingFigures.of(await closed_loops(client, timed, **load))


async def soak(url: str, process: subprocess.Popen[str], arguments: argparse.Namespace) -> str:
    """Closed loops while ranks are killed; what became of the requests and of the server, in words."""
    chance = random.Random(arguments.seed)
    limits = httpx.Limits(max_connections=arguments.clients)
    end_s = perf_counter() + arguments.seconds
    outcomes: list[str] = []
    async with httpx.AsyncClient(
        base_url=url, timeout=REQUEST_TIMEOUT_S, limits=limits, trust_env=False
    ) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def loop() -> None:
            while perf_counter() < end_s:
                prompt = random_prompt(chance, arguments.prompt_tokens, VOCAB_SIZE)
                try:
                    trace = await stream(client, prompt, model=model, max_tokens=arguments.max_tokens)
                    outcomes.append("" if trace.num_tokens == arguments.max_tokens else "cut short")
                except (RuntimeError, httpx.HTTPError) as error:
                    outcomes.append(repr(error))

        loops = [asyncio.create_task(loop()) for _ in range(arguments.clients)]
        await asyncio.sleep(arguments.kill_every)
        before = holdings(process)
        num_kills = 0
        while perf_counter() < end_s:
            chance.choice(ranks_of(process)).kill()
            num_kills += 1
            await asyncio.sleep(arguments.kill_every)
        await asyncio.gather(*loops)
    await asyncio.sleep(1)
    failed = [outcome for outcome in outcomes if outcome]
    return (
        f"{num_kills} kills in {arguments.seconds:g} s, {arguments.clients} clients | {len(failed)} of "
        f"{len(outcomes)} requests failed {sorted(set(failed))[:3]} | before {before} | after {holdings(process)}"
    )


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def holdings(process: subprocess.Popen[str]) -> str:
    num_descriptors, ranks = psutil.Process(process.pid).num_fds(), ranks_of(process)
    return f"{resident_mib(process)} MiB, {len(ranks)} ranks, {num_descriptors} descriptors"


if __name__ == "__main__":
    main()
