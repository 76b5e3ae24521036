"""FastServe's rings as a backend of torch.distributed: `init_process_group(backend="fastserve")`.

CPU tensors. Ranks find each other through torch's own store; from then on those of one host share memory, and those
of several are connected (mesh.py). Collectives that are asked for synchronously run in the caller's thread, the rest
one after the other on a thread. A rank that dies, or does not come within the timeout, is a DistBackendError on all
others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch import Tensor, distributed

from fastserve.distributed.directory import Store, StoreDirectory
from fastserve.distributed.group import meet
from fastserve.distributed.process_group_messages import Messages
from fastserve.distributed.process_group_work import FutureWork, Lane, Run
from fastserve.distributed.reduction import reduction_of
from fastserve.distributed.tensor_buffer import Buffer, Buffers
from fastserve.distributed.tensor_parts import check_alike, check_whole, split_rows
from fastserve.errors import GroupError

SYMMETRIC_BYTES = 4096  # of the fused ops, which a process group does not run
LOOK_S = 0.5  # how often works that take too long are looked for


def create(backend: str, store: Store, rank: int, size: int, timeout: timedelta) -> ProcessGroup:
    """What torch calls for init_process_group and new_group. Raises DistBackendError."""
    try:
        return ProcessGroup(backend, store, rank, size, timeout)
    except GroupError as error:
        raise distributed.DistBackendError(str(error)) from error


_Base: Any = distributed.ProcessGroup  # its stubs know only the overloads of callers, not those of backends


class ProcessGroup(_Base):  # type: ignore[misc]
    def __init__(self, backend: str, store: Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._backend = backend
        self._timeout_s = timeout.total_seconds()
        self._group = meet(
            StoreDirectory(store, rank, size),
            rank,
            symmetric_bytes=SYMMETRIC_BYTES,
            timeout_s=self._timeout_s,
        )
        self._peers = self._group.peers
        self._collectives = Lane("fastserve-collectives", self._explain)
        self._messages = Messages(self._peers, self._explain, self._check_open)
        self._expired = ""
        self._name = self._description = ""
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="fastserve-timeouts", daemon=True).start()

    # Names, as torch's C++ side asks for them and sets them.

    def getBackendName(self) -> str:
        return self._backend

    def setGroupName(self, name: str) -> None:
        self._name = name

    def getGroupName(self) -> str:
        return self._name

    @property
    def group_name(self) -> str:
        return self._name

    def setGroupDesc(self, description: str) -> None:
        self._description = description

    def getGroupDesc(self) -> str:
        return self._description

    @property
    def group_desc(self) -> str:
        return self._description

    def shutdown(self) -> None:
        """Leaves the group; what runs and what comes fails. Again is harmless."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._is_busy():
            self._group.raise_epoch()
        for lane in self._lanes():
            lane.close()
        self._group.close()

    abort = shutdown

    # Collectives of one tensor each.

    def allreduce(self, tensors: Sequence[Tensor], opts: Any = None) -> FutureWork:
        return self._reduce_all(tensors, opts or distributed.AllreduceOptions())

    def allreduce_coalesced(self, tensors: Sequence[Tensor], opts: Any = None) -> FutureWork:
        return self._reduce_all(tensors, opts or distributed.AllreduceOptions())

    def _reduce_all(self, tensors: Sequence[Tensor], opts: Any) -> FutureWork:
        tensors = list(tensors)
        reductions = [reduction_of(tensor, opts.reduceOp) for tensor in tensors]

        def run() -> None:
            for tensor, reduction in zip(tensors, reductions, strict=True):
                with Buffer(tensor) as buffer:
                    self._peers.all_reduce(buffer.address, *reduction)

        return self._start(run, tensors, opts)

    def reduce(self, tensors: Sequence[Tensor], opts: Any) -> FutureWork:
        (tensor,) = tensors
        reduction = reduction_of(tensor, opts.reduceOp)

        def run() -> None:
            with Buffer(tensor) as buffer:
                self._peers.reduce(buffer.address, *reduction, opts.rootRank)

        return self._start(run, [tensor], opts)

    def broadcast(self, tensors: Sequence[Tensor], opts: Any = None) -> FutureWork:
        tensors = list(tensors)
        root = 0 if opts is None else opts.rootRank

        def run() -> None:
            for tensor in tensors:
                with Buffer(tensor) as buffer:
                    self._peers.broadcast(buffer.address, buffer.num_bytes, root)

        return self._start(run, tensors, opts)

    def barrier(self, opts: Any = None) -> FutureWork:
        return self._start(self._peers.barrier, [], opts)

    # Collectives of a tensor per rank.

    def allgather(
        self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None
    ) -> FutureWork:
        outputs, inputs = [list(output) for output in outputs], list(inputs)
        for output, tensor in zip(outputs, inputs, strict=True):
            check_alike("allgather", tensor, output)

        def run() -> None:
            for output, tensor in zip(outputs, inputs, strict=True):
                with Buffer(tensor, writes=False) as source, Buffers(output) as buffers:
                    self._peers.all_gather(source.address, buffers.addresses, source.num_bytes)

        return self._start(run, outputs, opts)

    def all_gather_single(self, output: Tensor, tensor: Tensor, opts: Any = None) -> FutureWork:
        return self.all_gather_single_coalesced([output], [tensor], opts)

    def all_gather_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> FutureWork:
        outputs, inputs = list(outputs), list(inputs)
        for output, tensor in zip(outputs, inputs, strict=True):
            check_whole("all_gather_single", output, tensor, self.size())

        def run() -> None:
            for output, tensor in zip(outputs, inputs, strict=True):
                with Buffer(tensor, writes=False) as source, Buffer(output) as whole:
                    self._peers.all_gather(source.address, whole.chunks(self.size()), source.num_bytes)

        return self._start(run, outputs, opts)

    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def allgather_coalesced(
        self, output_lists: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None
    ) -> FutureWork:
        # One list per rank here, of a tensor per input.
        return self.allgather([list(outputs) for outputs in zip(*output_lists, strict=True)], inputs, opts)

    def reduce_scatter(
        self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any = None
    ) -> FutureWork:
        opts = opts or distributed.ReduceScatterOptions()
        outputs, inputs = list(outputs), [list(parts) for parts in inputs]
        reductions = [reduction_of(output, opts.reduceOp) for output in outputs]
        for output, parts in zip(outputs, inputs, strict=True):
            check_alike("reduce_scatter", output, parts)

        def run() -> None:
            for output, parts, reduction in zip(outputs, inputs, reductions, strict=True):
                with Buffers(parts, writes=False) as sources, Buffer(output) as buffer:
                    self._peers.reduce_scatter(sources.addresses, buffer.address, *reduction)

        return self._start(run, outputs, opts)

    def reduce_scatter_single(self, output: Tensor, tensor: Tensor, opts: Any = None) -> FutureWork:
        return self.reduce_scatter_single_coalesced([output], [tensor], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None
    ) -> FutureWork:
        opts = opts or distributed.ReduceScatterOptions()
        outputs, inputs = list(outputs), list(inputs)
        reductions = [reduction_of(output, opts.reduceOp) for output in outputs]
        for output, tensor in zip(outputs, inputs, strict=True):
            check_whole("reduce_scatter_single", tensor, output, self.size())

        def run() -> None:
            for output, tensor, reduction in zip(outputs, inputs, reductions, strict=True):
                with Buffer(tensor, writes=False) as whole, Buffer(output) as buffer:
                    self._peers.reduce_scatter(whole.chunks(self.size()), buffer.address, *reduction)

        return self._start(run, outputs, opts)

    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def gather(self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any) -> FutureWork:
        (tensor,), root = inputs, opts.rootRank
        output = list(outputs[0]) if self.rank() == root else []
        if self.rank() == root:
            check_alike("gather", tensor, output)

        def run() -> None:
            with Buffer(tensor, writes=False) as source, Buffers(output) as buffers:
                self._peers.gather(source.address, buffers.addresses, source.num_bytes, root)

        return self._start(run, [output], opts)

    def scatter(self, outputs: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]], opts: Any) -> FutureWork:
        (output,), root = outputs, opts.rootRank
        parts = list(inputs[0]) if self.rank() == root else []
        if self.rank() == root:
            check_alike("scatter", output, parts)

        def run() -> None:
            with Buffers(parts, writes=False) as sources, Buffer(output) as buffer:
                self._peers.scatter(sources.addresses, buffer.address, buffer.num_bytes, root)

        return self._start(run, [output], opts)

    def alltoall(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], opts: Any = None) -> FutureWork:
        outputs, inputs = list(outputs), list(inputs)

        def run() -> None:
            with Buffers(inputs, writes=False) as sources, Buffers(outputs) as buffers:
                self._peers.all_to_all(
                    sources.addresses, sources.num_bytes, buffers.addresses, buffers.num_bytes
                )

        return self._start(run, outputs, opts)

    def all_to_all_single(
        self,
        output: Tensor,
        tensor: Tensor,
        output_split_sizes: Sequence[int],
        input_split_sizes: Sequence[int],
        opts: Any = None,
    ) -> FutureWork:
        outputs = split_rows("output", output, output_split_sizes, self.size())
        inputs = split_rows("input", tensor, input_split_sizes, self.size())
        return self.alltoall(outputs, inputs, opts)

    alltoall_base = all_to_all_single

    # Messages.

    def send(self, tensors: Sequence[Tensor], destination: int, tag: int = 0) -> FutureWork:
        self._check_open()
        return self._messages.send(tensors, destination, tag)

    def recv(self, tensors: Sequence[Tensor], source: int, tag: int = 0) -> FutureWork:
        self._check_open()
        return self._messages.receive(tensors, source, tag)

    def recv_anysource(self, tensors: Sequence[Tensor], tag: int = 0) -> FutureWork:
        self._check_open()
        return self._messages.receive_from_anybody(tensors, tag)

    # What the collectives go through.

    def _start(self, run: Run, result: object, opts: Any) -> FutureWork:
        self._check_open()
        work = FutureWork(result)
        if getattr(opts, "asyncOp", True):
            self._collectives.queue(work, run)
        else:
            self._collectives.run_now(work, run)
        return work

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise distributed.DistBackendError("the process group was destroyed")

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, GroupError):
            return distributed.DistBackendError(self._expired or str(error))
        return error

    def _is_busy(self) -> bool:
        return any(lane.busy_since_s is not None for lane in self._lanes())

    def _lanes(self) -> list[Lane]:
        return [self._collectives, *self._messages.lanes()]

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            now_s = time.monotonic()
            starts_s = [lane.busy_since_s for lane in self._lanes()]
            if any(start_s is not None and now_s - start_s > self._timeout_s for start_s in starts_s):
                self._expired = f"a collective took longer than the timeout of {self._timeout_s:g} s"
                self._group.raise_epoch()
                return
