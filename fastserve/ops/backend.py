"""Which backend runs an op: by default one for the device of the caller's tensors, or what FASTSERVE_BACKEND names."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any, Literal, get_args

import torch

from fastserve.errors import BackendError

Backend = Literal["reference", "cpu", "cuda", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
VARIABLE = "FASTSERVE_BACKEND"

# On which devices a backend runs, besides those that Triton's interpreter adds to its own.
_DEVICES: dict[Backend, tuple[str, ...]] = {
    "reference": ("cpu", "cuda"),
    "cpu": ("cpu",),
    "cuda": ("cuda",),
    "triton": ("cuda",),
}
HOW_TO_GET: dict[Backend, str] = {
    "cuda": "fastserve was built without its CUDA ops: install it again where nvcc is on the PATH",
    "triton": "triton is not installed: pip install fastserve[gpu]",
}


def forced() -> Backend | None:
    """What FASTSERVE_BACKEND says. Raises ValueError for a name that is no backend."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    for backend in BACKENDS:
        if name == backend:
            return backend
    raise ValueError(f"{VARIABLE} must be one of {', '.join(BACKENDS)}, got {name!r}")


@cache
def cuda_ops() -> ModuleType | None:
    """fastserve._cuda; None: built without nvcc."""
    try:
        from fastserve import _cuda
    except ImportError:
        return None
    return _cuda


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def is_installed(backend: Backend) -> bool:
    if backend == "cuda":
        return cuda_ops() is not None
    return backend != "triton" or has_triton()


def interprets() -> bool:
    """Whether Triton kernels are interpreted: then they run on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(backend: Backend, device: str) -> bool:
    return device in _DEVICES[backend] or (backend == "triton" and device == "cpu" and interprets())


def choose_backend(op: str, implemented: Mapping[Backend, Any], device: str) -> Backend:
    """The forced backend, or the first of those that are implemented, run on the device and are installed.

    Raises BackendError saying how to get what is missing, ValueError for a forced backend that cannot run the op.
    """
    wanted = forced()
    if wanted is not None:
        if wanted not in implemented:
            raise ValueError(f"{op} has no backend {wanted}: it has {', '.join(implemented)}")
        if not runs_on(wanted, device):
            raise ValueError(f"{VARIABLE}={wanted} does not run on {device} tensors")
        if not is_installed(wanted):
            raise BackendError(f"{op}: {HOW_TO_GET[wanted]}")
        return wanted
    fitting = [name for name in implemented if name != "reference" and device in _DEVICES[name]]
    for name in fitting:
        if is_installed(name):
            return name
    how = "; ".join(HOW_TO_GET[name] for name in fitting)
    raise BackendError(f"{op} cannot run on {device} tensors: {how or 'no backend does'}")


def lays_rows(device: torch.device) -> bool:
    """Whether weights and KV caches lie in plain rows there, as GPUs read them; else in the lanes of csrc/ops.h."""
    return device.type == "cuda" or forced() == "triton"


def activation_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """What activations may be there: the CPU's kernels compute on fp32 alone."""
    if device.type == "cuda" or forced() in ("triton", "reference"):
        return (torch.float32, torch.bfloat16, torch.float16)
    return (torch.float32,)
