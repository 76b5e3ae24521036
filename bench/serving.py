"""`fastserve serve` under streaming clients: closed loops, then requests that arrive by chance at half that rate.

python bench/serving.py --clients 16 --requests 64 --rounds 3
python bench/serving.py --against http://127.0.0.1:8001 --offline

--against measures a server that runs already, of whatever make, with the same clients and in turns; --offline the
engine alone, without HTTP, with as many requests at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter

from fastserve.benchmark.machine import describe_machine
from fastserve.benchmark.peers import greedy, random_prompt
from fastserve.benchmark.placement import probe
from fastserve.benchmark.served import running_server
from fastserve.benchmark.serving import (
    VOCAB_SIZE,
    ServingFigures,
    Trace,
    run_closed_loops,
    run_poisson_arrivals,
)
from fastserve.cli.options import ENGINE
from fastserve.cli.settings import Parser, add_options, resolve
from fastserve.llm import LLM

Prompts = list[list[int]]


@dataclass(slots=True)
class Server:
    """A server under measurement; traces of each round."""

    name: str
    url: str
    closed: list[list[Trace]] = field(default_factory=list)
    poisson: list[list[Trace]] = field(default_factory=list)


def main() -> None:
    arguments = parse_arguments()
    machine, before = describe_machine(), probe()
    random_ids = random.Random(arguments.seed)

    def prompts(count: int) -> Prompts:
        return [random_prompt(random_ids, arguments.prompt_tokens, VOCAB_SIZE) for _ in range(count)]

    with ExitStack() as stack:
        served = stack.enter_context(running_server(arguments.model, serve_options(arguments)))
        servers = [Server(f"fastserve, ready after {served.ready_s:.2f} s", served.url)]
        servers += [Server(url, url) for url in arguments.against]
        for server in servers:
            closed(server.url, prompts(arguments.clients), arguments)
        offline = offline_engine(arguments, stack) if arguments.offline else None
        offline_rates: list[float] = []
        for _ in range(arguments.rounds):
            for server in servers:
                server.closed.append(closed(server.url, prompts(arguments.requests), arguments))
            if offline is not None:
                offline_rates.append(offline(prompts(arguments.requests)))
        if arguments.poisson:
            for server in servers:
                rate = arguments.poisson * median_rate(server.closed) / arguments.max_tokens
                gaps, given = random.Random(arguments.seed), prompts(arguments.requests)
                traces = run_poisson_arrivals(
                    server.url, given, rate=rate, gaps=gaps, max_tokens=arguments.max_tokens
                )
                server.poisson.append(traces)
        holdings = served.holdings
    place = f"{machine} | {before.state} -> {probe().state}"
    load = f"{arguments.prompt_tokens} in / {arguments.max_tokens} out"
    for server in servers:
        print(f"{place} | {arguments.clients} closed loops, {load} | {server.name} | {told(server.closed)}")
    for server in servers:
        if server.poisson:
            print(
                f"{place} | Poisson at {arguments.poisson:g} of that, {load} | {server.name} | {told(server.poisson)}"
            )
    if offline_rates:
        rate = statistics.median(offline_rates)
        share = median_rate(servers[0].closed) / rate
        print(
            f"{place} | offline, {arguments.clients} at a time, {load} | {rate:.1f} tokens/s, HTTP {share:.0%}"
        )
    print(f"the server holds {holdings} | {machine.commit}")
    if arguments.json:
        record = {"machine": asdict(machine), "load": load, "offline": offline_rates}
        figures = {
            server.name: [asdict(ServingFigures.of(traces)) for traces in server.closed] for server in servers
        }
        arguments.json.write_text(json.dumps({**record, "closed": figures}, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument(
        "--requests", type=int, default=64, help="of a round, besides one per client to warm up"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", action="append", default=[], metavar="URL", help="can be repeated")
    parser.add_argument("--offline", action="store_true", help="measure the engine without HTTP, too")
    parser.add_argument(
        "--poisson", type=float, default=0.5, metavar="SHARE", help="of each server's capacity; 0: none (0.5)"
    )
    parser.add_argument(
        "--serve-option", action="append", default=[], help="passed on, e.g. --serve-option=--policy=fcfs"
    )
    parser.add_argument("--json", type=Path, default=None, help="file for the figures")
    return parser.parse_args()


def serve_options(arguments: argparse.Namespace) -> list[str]:
    return ["--devices", str(arguments.devices), *arguments.serve_option]


def closed(url: str, prompts: Prompts, arguments: argparse.Namespace) -> list[Trace]:
    return run_closed_loops(url, prompts, num_clients=arguments.clients, max_tokens=arguments.max_tokens)


def offline_engine(arguments: argparse.Namespace, stack: ExitStack) -> Callable[[Prompts], float]:
    """Tokens a second of the same load, with the server's options."""
    parser = Parser()
    add_options(parser, ENGINE)
    given, _ = parser.parse_known_args(["--model", arguments.model, *serve_options(arguments)])
    options = resolve(ENGINE, vars(given), os.environ).pick(ENGINE)
    llm = stack.enter_context(closing(LLM(**{**options, "max_num_seqs": arguments.clients})))

    def rate(prompts: Prompts) -> float:
        start = perf_counter()
        llm.generate(prompts, greedy(arguments.max_tokens))
        return len(prompts) * arguments.max_tokens / (perf_counter() - start)

    rate([[1, 2, 3]])
    return rate


def median_rate(rounds: Sequence[Sequence[Trace]]) -> float:
    return statistics.median(ServingFigures.of(traces).tokens_per_s for traces in rounds)


def told(rounds: Sequence[list[Trace]]) -> str:
    """The rate is the rounds' median; waits are of all their requests."""
    everything = ServingFigures.of([trace for traces in rounds for trace in traces])
    return str(replace(everything, tokens_per_s=median_rate(rounds)))


if __name__ == "__main__":
    main()
