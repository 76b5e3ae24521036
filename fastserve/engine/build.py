"""Puts an engine together from a configuration: file, tokenizer, template, ranks."""

from __future__ import annotations

from fastserve.config import EngineConfig
from fastserve.engine.chat_template import ChatTemplate
from fastserve.engine.engine import Engine
from fastserve.engine.tokenizer import Tokenizer
from fastserve.weights.store import resolve_model
from fastserve.worker.executor import start_executor
from fastserve.worker.sizing import plan_execution


def build_engine(config: EngineConfig) -> Engine:
    """An engine whose ranks are ready.

    Raises ValueError or a FastServeError, each in one line: ModelNotFoundError, WeightFileError,
    ModelConfigError, CapacityError (too little memory), GroupError.
    """
    execution = plan_execution(config, resolve_model(config.model, offline=config.offline))
    metadata = execution.model.file.metadata
    tokenizer = Tokenizer.from_metadata(metadata)
    template = ChatTemplate.from_metadata(metadata, tokenizer)
    return Engine(start_executor(execution), tokenizer, config, chat_template=template)
