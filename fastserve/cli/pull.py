"""`fastserve pull`: brings a model onto this machine and prints where it is."""

from __future__ import annotations

import argparse
import sys

from fastserve.errors import ModelNotFoundError
from fastserve.weights.pull import pull
from fastserve.weights.registry import DEFAULT_MODEL, KNOWN_MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help=f"one of: {', '.join(KNOWN_MODELS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--offline", action="store_true", help="never download: fail if the model is not here"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def run(args: argparse.Namespace) -> int:
    """Prints the file's path on stdout; gives 1 after one line on stderr when there is none."""
    try:
        path = pull(args.model, offline=args.offline, progress=not args.quiet)
    except ModelNotFoundError as error:
        print(f"fastserve: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0
