"""`python -m fastserve.ops`: op, what it mutates, which backends have it; then what of them this machine has."""

from __future__ import annotations

import torch

import fastserve.ops  # noqa: F401  (registers the ops)
from fastserve import _C
from fastserve.ops.backend import BACKENDS, cuda_ops, has_triton
from fastserve.ops.registry import table


def main() -> None:
    lines = [("op", "mutates", *BACKENDS)]
    for row in table():
        marks = ("yes" if backend in row.backends else "-" for backend in BACKENDS)
        lines.append((row.name, ", ".join(row.mutates) or "-", *marks))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    print()
    for name, state in states().items():
        print(f"{name:<9}  {state}")


def states() -> dict[str, str]:
    """What this machine has of each backend."""
    isas = sorted((isa for isa, supported, _ in _C.isas() if supported), key=lambda isa: isa != _C.isa())
    return {
        "reference": "plain torch, on any device; FASTSERVE_BACKEND=reference",
        "cpu": f"{isas[0]}, chosen when loaded; {', '.join(isas[1:]) or 'no other'} by FASTSERVE_ISA",
        "cuda": _cuda_state(),
        "triton": _triton_state(),
    }


def _cuda_state() -> str:
    cuda = cuda_ops()
    if cuda is None:
        return "not built: no nvcc was found"
    try:
        return f"built; {cuda.device_count()} devices"
    except RuntimeError as error:
        return f"built; no device: {error}"


def _triton_state() -> str:
    if not has_triton():
        return "not installed: pip install fastserve[gpu]"
    return "installed" if torch.cuda.is_available() else "installed; no device"


if __name__ == "__main__":
    main()
