"""`fastserve VERB`: finds the verb, settles its options and turns every error into one line and an exit code.

A verb is a module of this folder: add_arguments(parser), run(settings) -> exit code, and OPTIONS if it takes
any of the table. It is imported when it is asked for, and imports what is heavy in run.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fastserve import __version__
from fastserve.cli.settings import Parser, UsageError, add_options, resolve, say
from fastserve.errors import FastServeError

VERBS = {
    "serve": "answer HTTP requests, with OpenAI's routes",
    "generate": "continue prompts",
    "chat": "talk to a model in the terminal",
    "pull": "fetch a model",
    "plan": "show how a model's layers are divided among devices",
    "bench": "measure a model on this machine",
    "info": "show what is installed and what this machine has",
}

FAILED = 1
USAGE = 2
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns the exit code. FASTSERVE_DEBUG=1 lets tracebacks out."""
    debug = os.environ.get("FASTSERVE_DEBUG", "") not in ("", "0")
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (FastServeError, ValueError, ImportError, OSError) as error:
        if debug:
            raise
        say(f"fastserve: error: {_one_line(error)}")
        return USAGE if isinstance(error, UsageError) else FAILED


def _run(argv: list[str]) -> int:
    if argv and argv[0] in VERBS:
        return _run_verb(argv[0], argv[1:])
    parser = Parser(prog="fastserve", description="Serves language models over a group of devices.")
    parser.add_argument("--version", action="version", version=f"fastserve {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for name, text in VERBS.items():
        verbs.add_parser(name, help=text)
    parser.epilog = "fastserve VERB --help tells a verb's options."
    if not argv:
        parser.print_help()
        return USAGE
    if not argv[0].startswith("-"):
        raise UsageError(f"unknown verb {argv[0]!r}; there are {', '.join(VERBS)}")
    parser.parse_args(argv)
    return 0


def _run_verb(name: str, argv: list[str]) -> int:
    verb: Any = import_module(f"fastserve.cli.{name}")
    parser = Parser(prog=f"fastserve {name}", description=VERBS[name][0].upper() + VERBS[name][1:] + ".")
    verb.add_arguments(parser)
    options = getattr(verb, "OPTIONS", ())
    if options:
        add_options(parser, options)
    return int(verb.run(resolve(options, vars(parser.parse_args(argv)), os.environ)))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
