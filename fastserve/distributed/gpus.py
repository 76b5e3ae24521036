"""The GPUs of this machine, as `devices` names them: cuda, cuda:0,1, cuda:0,cuda:1."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from fastserve.errors import BackendError

HOW = "cuda for all GPUs, or cuda:0,1 for those of these numbers"


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    name: str
    total_bytes: int


def names_gpus(wanted: int | str) -> bool:
    return isinstance(wanted, str) and wanted.strip().startswith("cuda")


def find_gpus(wanted: str) -> tuple[Gpu, ...]:
    """The GPUs that `wanted` names, in its order.

    Raises ValueError saying what was wrong and what would be right, BackendError where GPUs cannot be used here.
    """
    present = list_gpus()
    numbers = _numbers(wanted)
    if numbers is None:
        return present
    if doubles := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise ValueError(f"devices may name a GPU once, got {doubles[0]} twice in {wanted!r}")
    if foreign := [number for number in numbers if number >= len(present)]:
        raise ValueError(
            f"devices may name GPUs 0 to {len(present) - 1} here, got {foreign[0]} in {wanted!r}"
        )
    return tuple(present[number] for number in numbers)


def list_gpus() -> tuple[Gpu, ...]:
    """Raises BackendError where there are none, or what they need is not installed."""
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f"GPUs need {' and '.join(missing)}: pip install fastserve[gpu]")
    try:
        from fastserve import _cuda
    except ImportError:
        raise BackendError(
            "fastserve was built without its CUDA ops: install it again where nvcc is on the PATH"
        ) from None
    try:
        count = _cuda.device_count()
    except RuntimeError as error:
        raise BackendError(f"no GPU can be used here: {error}") from None
    if not count:
        raise BackendError("this machine has no GPU that CUDA can use")
    return tuple(Gpu(index, *_cuda.device_info(index)[:2]) for index in range(count))


def _numbers(wanted: str) -> list[int] | None:
    """None: all of them. Raises ValueError for what names no GPUs."""
    if wanted.strip() == "cuda":
        return None
    numbers = []
    for part in wanted.split(","):
        number = part.strip().removeprefix("cuda:")
        if not number.isdecimal():
            raise ValueError(f"devices must be {HOW}; got {wanted!r}")
        numbers.append(int(number))
    return numbers
