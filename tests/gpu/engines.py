"""Where the engine's tests run: on GPUs with a real model, and on fake ones with its first layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastserve import LLM
from fastserve.distributed import gpus
from fastserve.distributed.gpus import Gpu
from fastserve.worker import group_executor


@dataclass(frozen=True, slots=True)
class Site:
    model: Path
    num_gpus: int

    def open(self, num_gpus: int = 1, **limits: int) -> LLM:
        devices = ",".join(f"cuda:{number}" for number in range(num_gpus))
        return LLM(str(self.model), devices=devices, **limits)


def real_site(model: Path) -> Site:
    return Site(model, torch.cuda.device_count())


@contextmanager
def fake_site(model: Path) -> Iterator[Site]:
    """Two GPUs that are processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_executor, "GPU_RANK", "fastserve.testing.fake_gpu_rank")
        patch.setattr(gpus, "list_gpus", lambda: tuple(Gpu(i, f"fake {i}", 8 << 30) for i in range(2)))
        yield Site(model, 2)
