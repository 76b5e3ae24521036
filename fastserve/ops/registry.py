"""The table of ops: their names, and their registration with torch.

An op is registered once, from its own file, through `torch.library.Library` (a call costs a few microseconds,
with the decorators of torch.library several times that). What an op mutates is read off its schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, cast

import torch

from fastserve import _C

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
    "matmul_all_reduce",
    "matmul_all_reduce_add_rms_norm",
    "sample",
)

_library = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def register(schema: str, *, cpu: Callable[P, R], fake: Callable[P, R]) -> Callable[P, R]:
    """Defines torch.ops.fastserve.<op> and returns it; `fake` checks the arguments and allocates the result.

    Raises ValueError for an op that the table does not name.
    """
    name = schema.split("(", 1)[0]
    if name not in NAMES:
        raise ValueError(f"schema must begin with one of {NAMES}, got {name}")
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    _library.impl(name, cpu, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return cast(Callable[P, R], overload(name))


def overload(name: str) -> torch._ops.OpOverload:
    return cast(torch._ops.OpOverload, getattr(torch.ops.fastserve, name).default)


@dataclass(frozen=True, slots=True)
class OpRow:
    """One line of the table that `python -m fastserve.ops` prints."""

    name: str
    mutates: tuple[str, ...]
    backends: tuple[str, ...]  # usable on this machine


def backends(name: str) -> tuple[str, ...]:
    """What can run the op here, the one that is chosen for CPU tensors first."""
    native = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CPU")
    supported = [isa for isa, supported, _ in _C.isas() if supported]
    supported.sort(key=lambda isa: isa != _C.isa())
    return (*((f"cpu ({', '.join(supported)})",) if native else ()), "reference")


def mutated(name: str) -> tuple[str, ...]:
    arguments = overload(name)._schema.arguments
    return tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)


def table() -> list[OpRow]:
    """Every op; they must have been imported (fastserve.ops does)."""
    return [OpRow(name, mutated(name), backends(name)) for name in NAMES]
