"""`fastserve pull`: fetches a model unless it is here, and prints where it is."""

from __future__ import annotations

import argparse

from fastserve.cli.options import ENGINE
from fastserve.cli.settings import Settings, add_model

OPTIONS = tuple(option for option in ENGINE if option.name in ("model", "offline"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)


def run(settings: Settings) -> int:
    """Raises ModelNotFoundError, which the command line turns into one line."""
    from fastserve.weights.store import resolve_model  # tqdm, hashing and zip files: not for --help

    print(resolve_model(settings.model, offline=settings.offline))
    return 0
