"""Where the calls of this room run: on a GPU, and some on CPU tensors, so that the tests themselves are tested."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from fastserve.benchmark.op_calls import Setting
from fastserve.ops.backend import Backend


@dataclass(frozen=True, slots=True)
class Place:
    """A device, the type of activations there, and the backend that FASTSERVE_BACKEND names; None: none."""

    device: str
    backend: Backend | None
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.device}-{self.backend or 'default'}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def setting(self) -> Setting:
        return Setting.on(self.device, self.dtype)

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def captured(self, call: Callable[[], object]) -> Callable[[], None]:
        """What replays the call's CUDA graph; on a CPU, the call."""
        if self.device != "cuda":
            return lambda: (call(), None)[1]
        call()  # compiles and loads what a capture must not
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def busy_side_stream(self) -> AbstractContextManager[object]:
        """Work of its context waits for a tenth of a second on a stream of its own."""
        if self.device != "cuda":
            return nullcontext()
        self.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(150_000_000)  # cycles
        return torch.cuda.stream(stream)
