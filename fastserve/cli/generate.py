"""`fastserve generate`: continues one prompt as a stream, or several as a batch."""

from __future__ import annotations

import argparse
import sys

from fastserve.cli.options import ENGINE, SAMPLING
from fastserve.cli.settings import Settings, UsageError
from fastserve.cli.speech import load, sampling_params, show

OPTIONS = ENGINE + SAMPLING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to continue; none: all of stdin")
    parser.add_argument("--chat", action="store_true", help="prompts are messages to answer")


def run(settings: Settings) -> int:
    prompts: list[str] = settings.prompts or [_from_stdin()]
    if not all(prompts):
        raise UsageError("a prompt must not be empty")
    params = sampling_params(settings)
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    with load(settings) as llm:
        if len(prompts) == 1:
            show(llm.stream(conversations[0] if settings.chat else prompts[0], params))
            print()
            return 0
        answers = llm.chat(conversations, params) if settings.chat else llm.generate(prompts, params)
    for answer in answers:
        print(answer.outputs[0].text)
    return 0


def _from_stdin() -> str:
    if sys.stdin.isatty():
        raise UsageError("generate needs a prompt: give it as an argument or on stdin")
    return sys.stdin.read().removesuffix("\n")
