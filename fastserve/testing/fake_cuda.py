"""A GPU made of the host's memory, for tests of what a rank enqueues where, when and in which order.

Tensors lie on the CPU, and ops are the CPU's own. What differs on a GPU is kept:

- Copies to and from pinned memory are late: one from the host reads it when the next op needs it, what one brings to
  the host is there once it was waited for. A stream that is made beside another, which lives, runs all that changes
  memory as late as events allow.
- A graph is a list of the ops of one run, with the tensors and the numbers that they had then: a replay writes the same
  memory, and sees no value of the host anew. Waiting for the device while capturing is refused.
- Memory ends: an allocation beyond `memory_bytes` raises what torch raises.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from fastserve.cuda.runtime import Event, Stream

T = TypeVar("T")
Op = Any  # a torch OpOverload
_COPY = torch.ops.aten.copy_.default
_WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def _tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]


def _made(args: Sequence[Any], result: Any) -> list[Tensor]:
    """What an op has allocated: results that are no views of what was there."""
    known = {tensor.untyped_storage().data_ptr() for tensor in _tensors(args)}
    return [tensor for tensor in _tensors(result) if tensor.untyped_storage().data_ptr() not in known]


def _changes_memory(op: Op) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments)


@dataclass(slots=True)
class _Pending:
    position: int
    action: Callable[[], object]
    to_host: bool = False  # with what it brings in hand: only the host has yet to see it


@dataclass(slots=True)
class FakeEvent:
    stream: FakeStream
    position: int
    looks: int = 0

    def done(self) -> bool:
        """Not at the first look, unless something else has waited for it."""
        self.looks += 1
        if self.looks > 1:
            self.finish()
        return self.stream.has_run(self.position)

    def finish(self) -> None:
        self.stream.run_until(self.position)


class FakeStream:
    def __init__(self, runtime: FakeRuntime, *, late: bool) -> None:
        self._runtime = runtime
        self._late = late
        self._pending: list[_Pending] = []
        self._num_enqueued = 0

    def run(self) -> AbstractContextManager[object]:
        return _Dispatch(self.dispatch)

    def record(self) -> FakeEvent:
        return FakeEvent(self, self._num_enqueued)

    def wait(self, event: Event) -> None:
        assert isinstance(event, FakeEvent)
        if self._late:
            self._enqueue(event.finish)
        else:
            event.finish()

    def synchronize(self) -> None:
        self.run_until(self._num_enqueued)

    def run_until(self, position: int) -> None:
        with _disable_current_modes():  # what was enqueued is the device's: it is not enqueued again
            while self._pending and self._pending[0].position <= position:
                self._pending.pop(0).action()

    def has_run(self, position: int) -> bool:
        return not self._pending or self._pending[0].position > position

    def dispatch(self, op: Op, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if all(self._runtime.is_pinned(tensor) for tensor in _tensors(args)) and _tensors(args):
            return op(*args, **kwargs)  # the host's own work: on no stream
        if op is _COPY and self._runtime.is_pinned(args[0]):
            return self._copy_to_host(args[0], args[1])
        if op is _COPY and self._runtime.is_pinned(args[1]):
            self._enqueue(lambda: args[0].copy_(args[1]))
            return args[0]
        if self._late and _changes_memory(op):
            returns = op._schema.returns
            assert all(value.alias_info is not None for value in returns), (
                f"{op} returns what is not there yet"
            )
            self._enqueue(lambda: op(*args, **kwargs))
            return args[0] if returns else None
        if not self._late:
            self._bring_in()
        result = op(*args, **kwargs)
        self._runtime.note(args, result)
        return result

    def _copy_to_host(self, host: Tensor, device: Tensor) -> Tensor:
        if self._late:
            self._enqueue(lambda: host.copy_(device))
        else:
            self._bring_in()
            seen = device.clone()
            self._enqueue(lambda: host.copy_(seen), to_host=True)
        return host

    def _bring_in(self) -> None:
        """What an op of the first stream finds done when it runs."""
        for entry in [entry for entry in self._pending if not entry.to_host]:
            self._pending.remove(entry)
            entry.action()

    def _enqueue(self, action: Callable[[], object], *, to_host: bool = False) -> None:
        self._num_enqueued += 1
        self._pending.append(_Pending(self._num_enqueued, action, to_host))


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives every op to a function, which may call it."""

    def __init__(self, dispatch: Callable[[Op, Sequence[Any], dict[str, Any]], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dispatch = dispatch

    def __torch_dispatch__(self, func: Op, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._dispatch(func, args, kwargs or {})


@dataclass(slots=True)
class _Captured:
    op: Op
    args: Sequence[Any]
    kwargs: dict[str, Any]
    made: list[Tensor]  # not views of what was there


class FakeGraph(Generic[T]):
    """To be replayed inside `stream.run()`, as anything else that is enqueued."""

    def __init__(self, runtime: FakeRuntime, body: Callable[[], T]) -> None:
        self._ops: list[_Captured] = []
        self._runtime = runtime
        with _Dispatch(self._capture):
            self.output = body()
        self.num_replays = 0

    def _capture(self, op: Op, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if op in _WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {op}")
        if op is _COPY and any(self._runtime.is_pinned(tensor) for tensor in args[:2]):
            raise RuntimeError("a graph would read or write the host's memory when it is replayed")
        result = op(*args, **kwargs)
        made = _made(args, result)
        self._runtime.note(args, result)
        if made or _changes_memory(op):
            self._ops.append(_Captured(op, args, kwargs, made))
        return result

    def replay(self) -> None:
        self.num_replays += 1
        for captured in self._ops:
            result = captured.op(*captured.args, **captured.kwargs)
            for memory, value in zip(captured.made, _made(captured.args, result), strict=True):
                memory.copy_(value)


class FakeRuntime:
    """memory_bytes: of the device; None: without an end."""

    device = torch.device("cpu")

    def __init__(self, memory_bytes: int | None = None) -> None:
        self.graphs: list[FakeGraph[Any]] = []
        self._streams: weakref.WeakSet[FakeStream] = weakref.WeakSet()
        self._memory_bytes = memory_bytes
        self._used_bytes = 0
        self._pinned: set[int] = set()

    def new_stream(self) -> FakeStream:
        stream = FakeStream(self, late=len(self._streams) > 0)
        self._streams.add(stream)
        return stream

    def pinned(self, *shape: int, dtype: torch.dtype) -> Tensor:
        tensor = torch.zeros(*shape, dtype=dtype)
        self._pinned.add(tensor.untyped_storage().data_ptr())
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def capture(self, body: Callable[[], T], stream: Stream) -> FakeGraph[T]:
        with stream.run():
            body()
        stream.synchronize()
        graph = FakeGraph(self, body)
        self.graphs.append(graph)
        return graph

    def note(self, args: Sequence[Any], result: Any) -> None:
        """Counts what an op has allocated for as long as it lives."""
        for tensor in _made(args, result):
            num_bytes = tensor.untyped_storage().nbytes()
            self._used_bytes += num_bytes
            weakref.finalize(tensor, self._free, num_bytes)
            if self._memory_bytes is not None and self._used_bytes > self._memory_bytes:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {num_bytes} bytes.")

    def _free(self, num_bytes: int) -> None:
        self._used_bytes -= num_bytes
