"""What a rank needs of its GPU beside tensors and ops: streams, events, graphs, pinned memory.

Everything of torch.cuda that decides what runs when goes through this door, so that the order of it all can be tested
where there is no GPU: testing/fake_cuda.py stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Event(Protocol):
    """A point in a stream."""

    def done(self) -> bool:
        """Whether all that was enqueued before it is done."""
        ...


class Stream(Protocol):
    def run(self) -> AbstractContextManager[object]:
        """What is called inside is enqueued here."""
        ...

    def record(self) -> Event: ...

    def wait(self, event: Event) -> None:
        """What is enqueued from now on runs after the event, of whatever stream."""
        ...

    def synchronize(self) -> None:
        """Returns when all that was enqueued is done."""
        ...


class Graph(Protocol[T_co]):
    @property
    def output(self) -> T_co:
        """What the captured call returned; every replay writes it anew."""
        ...

    def replay(self) -> None:
        """Enqueues on the current stream what was captured."""
        ...


class Runtime(Protocol):
    @property
    def device(self) -> torch.device: ...

    def new_stream(self) -> Stream: ...

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Zeros in memory of the host that the device reads and writes by itself."""
        ...

    def capture(self, body: Callable[[], T], stream: Stream) -> Graph[T]:
        """Runs `body` once, so that kernels are compiled and buffers made, and captures its second run.

        It may use no value of the host that changes, and wait for nothing.
        """
        ...


class CudaEvent:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]


class CudaStream:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def run(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.stream)

    def record(self) -> CudaEvent:
        return CudaEvent(self.stream.record_event())

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.stream.wait_event(event.event)

    def synchronize(self) -> None:
        self.stream.synchronize()


class CudaGraph(Generic[T]):
    def __init__(self, graph: torch.cuda.CUDAGraph, output: T) -> None:
        self._graph = graph
        self._output = output

    @property
    def output(self) -> T:
        return self._output

    def replay(self) -> None:
        self._graph.replay()


class CudaRuntime:
    """The GPU of that number, which becomes the process's current one."""

    def __init__(self, gpu: int) -> None:
        self.device = torch.device("cuda", gpu)
        torch.cuda.set_device(self.device)
        self._pool = torch.cuda.graph_pool_handle()  # one for all graphs: only one runs at a time

    def new_stream(self) -> CudaStream:
        return CudaStream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, pin_memory=True)

    def capture(self, body: Callable[[], T], stream: Stream) -> CudaGraph[T]:
        assert isinstance(stream, CudaStream)
        with stream.run():
            body()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream.stream):
            output = body()
        return CudaGraph(graph, output)
