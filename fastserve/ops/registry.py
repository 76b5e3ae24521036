"""The table of ops: their names, and their registration with torch.

An op is registered once, from its own file, through `torch.library.Library` (a call costs a few microseconds,
with the decorators of torch.library several times that). What an op mutates is read off its schema.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import torch

from fastserve.ops.backend import BACKENDS, VARIABLE, Backend, choose_backend

P = ParamSpec("P")
R = TypeVar("R")

NAMESPACE = "fastserve"
NAMES = (
    "embed",
    "rms_norm",
    "add_rms_norm",
    "matmul",
    "rotary",
    "store_kv",
    "paged_attention",
    "silu_mul",
    "select_rows",
    "all_reduce",
    "all_reduce_add_rms_norm",
    "matmul_all_reduce",
    "matmul_all_reduce_add_rms_norm",
    "sample",
    "swap",
)

_library = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
_implemented: dict[str, dict[Backend, Callable[..., Any]]] = {}


def register(
    schema: str,
    *,
    fake: Callable[P, R],
    reference: Callable[P, R],
    cpu: Callable[P, R],
    triton: Callable[P, R] | None = None,
    cuda: Callable[P, R] | None = None,
    prefer_cuda: bool = False,
) -> Callable[P, R]:
    """Defines torch.ops.fastserve.<op> and returns it.

    fake checks the arguments and allocates the result. The others are the op's backends, on the schema's own
    arguments; on CUDA tensors Triton comes first unless prefer_cuda.
    Raises ValueError for an op that the table does not name.
    """
    name = schema.split("(", 1)[0]
    if name not in NAMES:
        raise ValueError(f"schema must begin with one of {NAMES}, got {name}")
    on_gpu: list[tuple[Backend, Callable[P, R] | None]] = [("triton", triton), ("cuda", cuda)]
    ordered: list[tuple[Backend, Callable[P, R] | None]] = [("reference", reference), ("cpu", cpu)]
    ordered += reversed(on_gpu) if prefer_cuda else on_gpu
    backends = {backend: function for backend, function in ordered if function is not None}
    _implemented[name] = dict(backends)
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    for device in ("cpu", "cuda"):
        _library.impl(name, _chosen(name, backends, device), device.upper())  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return cast(Callable[P, R], overload(name))


def _chosen(name: str, backends: dict[Backend, Callable[P, R]], device: str) -> Callable[P, R]:
    """Calls the backend that is chosen; what was chosen is remembered, since it takes as long as a small op."""
    chosen: dict[str | None, Callable[P, R]] = {}

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        wanted = os.environ.get(VARIABLE)
        function = chosen.get(wanted)
        if function is None:
            function = chosen[wanted] = backends[choose_backend(name, backends, device)]
        return function(*args, **kwargs)

    return run


def overload(name: str) -> torch._ops.OpOverload:
    return cast(torch._ops.OpOverload, getattr(torch.ops.fastserve, name).default)


@dataclass(frozen=True, slots=True)
class OpRow:
    """One line of the table that `python -m fastserve.ops` prints."""

    name: str
    mutates: tuple[str, ...]
    backends: tuple[Backend, ...]  # in the order of BACKENDS


def mutated(name: str) -> tuple[str, ...]:
    arguments = overload(name)._schema.arguments
    return tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)


def implementation(name: str, backend: Backend) -> Callable[..., Any]:
    """A backend's function, on the schema's arguments. Raises KeyError."""
    return _implemented[name][backend]


def table() -> list[OpRow]:
    """Every op; they must have been imported (fastserve.ops does)."""
    return [
        OpRow(name, mutated(name), tuple(backend for backend in BACKENDS if backend in _implemented[name]))
        for name in NAMES
    ]
