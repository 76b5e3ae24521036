"""`fastserve serve` while ranks are killed: whether a request failed, and what the server holds at the end.

python bench/soak.py --devices 2 --clients 16 --kill-every 5 --seconds 300
"""

from __future__ import annotations

import argparse
import asyncio
import random
from time import perf_counter

import aiohttp

from fastserve.benchmark.machine import describe_machine
from fastserve.benchmark.peers import random_prompt
from fastserve.benchmark.served import Served, running_server
from fastserve.benchmark.serving import VOCAB_SIZE, connect, stream


def main() -> None:
    arguments = parse_arguments()
    with running_server(arguments.model, ["--devices", str(arguments.devices)]) as served:
        print(describe_machine(), asyncio.run(soak(served, arguments)), sep=" | ")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds between two kills of a rank")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long ranks are killed")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


async def soak(served: Served, arguments: argparse.Namespace) -> str:
    """Closed loops while ranks are killed; what became of the requests and of the server, in words."""
    chance = random.Random(arguments.seed)
    end_s = perf_counter() + arguments.seconds
    outcomes: list[str] = []
    async with connect(served.url, arguments.clients) as (client, model):

        async def loop() -> None:
            while perf_counter() < end_s:
                prompt = random_prompt(chance, arguments.prompt_tokens, VOCAB_SIZE)
                try:
                    trace = await stream(client, prompt, model=model, max_tokens=arguments.max_tokens)
                    outcomes.append("" if trace.num_tokens == arguments.max_tokens else "cut short")
                except (RuntimeError, aiohttp.ClientError) as error:
                    outcomes.append(repr(error))

        loops = [asyncio.create_task(loop()) for _ in range(arguments.clients)]
        await asyncio.sleep(arguments.kill_every)
        before = served.holdings
        num_kills = 0
        while perf_counter() < end_s:
            chance.choice(served.ranks).kill()
            num_kills += 1
            await asyncio.sleep(arguments.kill_every)
        await asyncio.gather(*loops)
    await asyncio.sleep(1)
    failed = [outcome for outcome in outcomes if outcome]
    return (
        f"{num_kills} kills in {arguments.seconds:g} s, {arguments.clients} clients | {len(failed)} of "
        f"{len(outcomes)} requests failed {sorted(set(failed))[:3]} | before {before} | after {served.holdings}"
    )


if __name__ == "__main__":
    main()
