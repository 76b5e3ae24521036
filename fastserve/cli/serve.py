"""`fastserve serve`: binds, loads, says that it is ready, and serves until it is told to end."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from types import FrameType

from fastserve.cli.install import require_native
from fastserve.cli.options import ENGINE, SERVER
from fastserve.cli.settings import Settings, UsageError, add_model, say
from fastserve.config import EngineConfig

OPTIONS = ENGINE + SERVER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)


def run(settings: Settings) -> int:
    with settings.blamed():
        config = EngineConfig(**settings.pick(ENGINE))
    _check(settings)
    require_native()
    from fastserve.server.limits import Limits
    from fastserve.server.run import bind

    with settings.blamed():
        limits = Limits(
            max_body_bytes=settings.max_body_bytes,
            max_prompts=settings.max_prompts,
            max_choices=settings.max_choices,
        )
    _log_to_stderr(settings.access_log)
    # Until the server runs there is nothing to drain: a SIGTERM while the model loads ends like a Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    sock = bind(settings.host, settings.port)

    from fastserve.engine.async_engine import AsyncEngine
    from fastserve.engine.build import build_engine
    from fastserve.server.app import create_app
    from fastserve.server.lifecycle import Lifecycle
    from fastserve.server.run import Ending, RunOptions, run, url

    with settings.blamed():
        engine = AsyncEngine(build_engine(config))
    try:
        lifecycle = Lifecycle()
        name = settings.served_model_name or model_name(config.model)
        keys = settings.api_key
        app = create_app(engine, model_name=name, api_keys=keys, limits=limits, lifecycle=lifecycle)
        ending = run(
            app,
            engine,
            lifecycle,
            sock,
            on_ready=lambda: print(f"FastServe serves {name} at {url(sock)} (Ctrl-C ends it)", flush=True),
            options=RunOptions(drain_timeout_s=settings.drain_timeout, access_log=settings.access_log),
        )
        if ending is Ending.FORCED:
            sys.stdout.flush()
            os._exit(128 + signal.SIGINT)  # at once: ranks end by themselves when this process is gone
    finally:
        engine.close()
    return 0


def _check(settings: Settings) -> None:
    with settings.blamed():
        if not 0 <= settings.port < 2**16:
            raise ValueError(f"port must be in [0, 65535], got {settings.port}")
        if not settings.drain_timeout >= 0:
            raise ValueError(f"drain_timeout must be >= 0, got {settings.drain_timeout}")
    if any(not key.strip() or not key.isprintable() for key in settings.api_key):
        raise UsageError("api_key must be printable and not empty")


def model_name(model: str) -> str:
    """What clients call it: a known name as it is, a file by its name alone."""
    return os.path.basename(model).removesuffix(".gguf") if model.endswith(".gguf") else model


def _interrupt(number: int, frame: FrameType | None) -> None:
    say("fastserve: ended while the model was loading")
    sys.exit(128 + number)


def _log_to_stderr(access_log: bool) -> None:
    logging.basicConfig(level=logging.WARNING, format="fastserve: %(levelname)s: %(message)s")
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
