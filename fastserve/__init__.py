"""FastServe: serves language models over a group of devices.

from fastserve import LLM, SamplingParams
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastserve.llm import LLM
    from fastserve.request import RequestOutput, SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "RequestOutput", "SamplingParams", "__version__"]

_MODULE_OF = {
    "LLM": "fastserve.llm",
    "RequestOutput": "fastserve.request",
    "SamplingParams": "fastserve.request",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fastserve' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
