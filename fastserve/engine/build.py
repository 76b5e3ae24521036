"""Puts an engine together from a configuration: file, tokenizer, template, ranks."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fastserve.config import EngineConfig
from fastserve.engine.engine import Engine
from fastserve.engine.tokenizer import Tokenizer
from fastserve.weights.store import resolve_model
from fastserve.worker.sizing import plan_execution
from fastserve.worker.start import start_executor

if TYPE_CHECKING:
    from fastserve.engine.chat_template import ChatTemplate


def build_engine(config: EngineConfig) -> Engine:
    """An engine whose ranks are ready.

    Raises ValueError or a FastServeError, each in one line: ModelNotFoundError, WeightFileError,
    ModelConfigError, CapacityError (too little memory), GroupError.
    """
    execution = plan_execution(config, resolve_model(config.model, offline=config.offline))
    with ThreadPoolExecutor(1) as beside:  # weights are packed without the GIL meanwhile
        words = beside.submit(_words, execution.model.file.metadata)
        executor = start_executor(execution)
    try:
        tokenizer, template = words.result()
    except BaseException:  # ranks run already
        executor.close()
        raise
    return Engine(executor, tokenizer, config, chat_template=template)


def _words(metadata: Mapping[str, object]) -> tuple[Tokenizer, ChatTemplate | None]:
    from fastserve.engine.chat_template import ChatTemplate  # jinja2 is loaded beside the packing, too

    tokenizer = Tokenizer.from_metadata(metadata)
    return tokenizer, ChatTemplate.from_metadata(metadata, tokenizer)
