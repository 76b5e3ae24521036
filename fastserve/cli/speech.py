"""What `generate` and `chat` share: a model from the settings, and answers that appear as they grow."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastserve.cli.install import require_native
from fastserve.cli.options import ENGINE, SAMPLING
from fastserve.cli.settings import Settings
from fastserve.config import EngineConfig
from fastserve.request import RequestOutput, SamplingParams

if TYPE_CHECKING:
    from fastserve.llm import LLM


def sampling_params(settings: Settings) -> SamplingParams:
    """--seed is the engine's, for requests that bring none: then it is this one's too."""
    with settings.blamed():
        return SamplingParams(**settings.pick(SAMPLING), seed=settings.seed)


def load(settings: Settings) -> LLM:
    with settings.blamed():
        config = EngineConfig(**settings.pick(ENGINE))
    require_native()
    from fastserve.engine.build import build_engine
    from fastserve.llm import LLM

    with settings.blamed():
        return LLM.from_engine(build_engine(config))


def show(outputs: Iterable[RequestOutput]) -> str:
    """Writes the one choice of an answer to stdout while it grows, and gives the whole of it."""
    text = ""
    for output in outputs:
        grown = output.outputs[0].text
        sys.stdout.write(grown[len(text) :])
        sys.stdout.flush()
        text = grown
    return text
