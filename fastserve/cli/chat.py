"""`fastserve chat`: a conversation in the terminal, or with whoever writes to stdin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from fastserve.cli.options import CHAT, ENGINE, SAMPLING
from fastserve.cli.settings import Settings, add_model, say
from fastserve.cli.speech import load, sampling_params, show
from fastserve.errors import CapacityError
from fastserve.request import RequestOutput, SamplingParams

if TYPE_CHECKING:
    from fastserve.llm import LLM

OPTIONS = ENGINE + SAMPLING + CHAT
HELP = "/reset forgets the conversation, /exit or Ctrl-D ends, Ctrl-C interrupts an answer"

Message = dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)


def run(settings: Settings) -> int:
    params = sampling_params(settings)
    with load(settings) as llm:
        if sys.stdin.isatty():
            say(HELP)
            with suppress(ImportError):
                import readline  # noqa: F401  # input() then has a history and can be edited
        talk(llm, params, settings.system)
    return 0


def talk(llm: LLM, params: SamplingParams, system: str | None) -> None:
    opening = [{"role": "system", "content": system}] if system else []
    messages: list[Message] = list(opening)
    for line in _lines():
        match line.strip():
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/reset":
                messages = list(opening)
                say("the conversation starts anew")
            case "/help":
                say(HELP)
            case _:
                messages = _turn(llm, params, messages, line)


def _turn(llm: LLM, params: SamplingParams, messages: list[Message], line: str) -> list[Message]:
    """The conversation with this turn, or without it if the model could not take it."""
    asked = [*messages, {"role": "user", "content": line}]
    outputs: list[RequestOutput] = []
    try:
        # LLM.stream is a generator: closing it is what aborts the request.
        with closing(_kept(llm.stream(asked, params), outputs)) as stream:  # type: ignore[type-var]
            show(stream)
    except KeyboardInterrupt:
        say(" (interrupted)")
    except (CapacityError, ValueError) as error:
        say(f"fastserve: {error}; /reset starts anew")
        return messages
    else:
        print(flush=True)
    text = outputs[-1].outputs[0].text if outputs else ""
    return [*asked, {"role": "assistant", "content": text}] if text else messages


def _kept(stream: Iterator[RequestOutput], outputs: list[RequestOutput]) -> Iterator[RequestOutput]:
    for output in stream:
        outputs[:] = [output]
        yield output


def _lines() -> Iterator[str]:
    """What the user writes, until the end. At the prompt, Ctrl-C drops the line and a second one ends."""
    interrupted = False
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
            interrupted = False
        except EOFError:
            if sys.stdin.isatty():
                say("")
            return
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            say("\n(Ctrl-C again or Ctrl-D ends)")
