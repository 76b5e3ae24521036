"""One rank's view of its group: collectives on tensors, without an import of torch."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any, Protocol, Self

from fastserve import _C
from fastserve.distributed.device_exchange import connect_device_exchange
from fastserve.distributed.symmetric import SymmetricHeap
from fastserve.errors import GroupError


class TorchTensor(Protocol):
    """What is used of a torch tensor, so that nothing here imports torch."""

    @property
    def dtype(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    @property
    def is_cpu(self) -> bool: ...
    def numel(self) -> int: ...
    def data_ptr(self) -> int: ...
    def is_contiguous(self) -> bool: ...


class Group:
    """One rank's view of its group; `exchange` is what the fused ops take, `peers` moves and reduces buffers.

    Every rank calls the same collectives in the same order, one at a time.
    """

    def __init__(
        self, peers: _C.PeerGroup, exchange: _C.Exchange, watchers: list[_C.Watcher], *, spans_hosts: bool
    ) -> None:
        self.rank = exchange.rank
        self.size = exchange.size
        self.peers = peers
        self.spans_hosts = spans_hosts
        self._exchange = exchange
        self._device_exchange: Any = None
        self._heap = SymmetricHeap(peers)
        # Also at exit: a process that ends in good order is no loss to the others.
        self._closed = False
        self._leave = weakref.finalize(self, _leave, peers, watchers)

    @property
    def exchange(self) -> _C.Exchange:
        """Raises GroupError where the group spans hosts, which share no memory."""
        if self.spans_hosts:
            raise GroupError("this group spans hosts: its ranks exchange buffers, by `peers`, and no tiles")
        return self._exchange

    @property
    def device_exchange(self) -> Any:
        """What the ops on CUDA tensors take: this rank's buffer on the current device, which its peers have mapped.

        Made at the first use, at which all ranks must be. Raises GroupError where the group spans hosts, or where
        fastserve was built without its CUDA ops.
        """
        if self._device_exchange is None:
            self._device_exchange = connect_device_exchange(self.exchange)
        return self._device_exchange

    def raise_epoch(self) -> None:
        """Ends the group for all ranks: whoever waits for one gets a RankLostError, and kernels on GPUs end."""
        self._exchange.raise_epoch()

    def empty(self, *shape: int, dtype: Any) -> Any:
        """A torch tensor in memory that all ranks see: `all_reduce` of it, or of its beginning, copies nothing.

        Every rank makes the same calls in the same order, and passes its tensor of the same call to `all_reduce`.
        dtype: torch's. Its values are not set. Raises CapacityError when init_group's heap_bytes are used up.
        """
        return self._heap.empty(shape, dtype)

    def all_reduce(self, tensor: TorchTensor) -> None:
        """Sums a contiguous CPU tensor over the ranks, in place: the same bits on all of them.

        fp32, fp64, fp16, bf16 (both summed in fp32 and rounded once, across hosts once on each level) or integers.
        Raises ValueError for another kind of tensor, RankLostError when a rank is gone.
        """
        if self._closed:
            raise GroupError("the group is closed")
        self.peers.all_reduce(*_buffer(tensor), _SUM, False)

    def barrier(self) -> None:
        """Returns when every rank has come here. Raises RankLostError when one is gone."""
        if self._closed:
            raise GroupError("the group is closed")
        self.peers.barrier()

    def close(self) -> None:
        """Leaves the group; a rank that still waits for this one gets a RankLostError. Idempotent."""
        self._closed = True
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _leave(peers: _C.PeerGroup, watchers: list[_C.Watcher]) -> None:
    peers.leave()
    for watcher in watchers:
        watcher.close()


_SUM = _C.REDUCE_OPS.index("sum")
_TYPES = {
    f"torch.{name}": _C.DATA_TYPES.index(code)
    for name, code in {
        "float32": "f32",
        "float64": "f64",
        "float16": "f16",
        "bfloat16": "bf16",
        "uint8": "u8",
        "int8": "s8",
        "int16": "s16",
        "int32": "s32",
        "int64": "s64",
    }.items()
}


_codes: dict[object, int] = {}  # by torch's dtype objects, as they come: their names take a microsecond


def _buffer(tensor: TorchTensor) -> tuple[int, int, int]:
    """(address, elements, type) of a tensor."""
    code = _codes.get(getattr(tensor, "dtype", None))
    if code is None:
        code = _code_of(tensor)
    if not (tensor.is_cpu and tensor.is_contiguous()):  # device.type takes 0.9 us
        raise _wrong(tensor)
    return tensor.data_ptr(), tensor.numel(), code


def _code_of(tensor: TorchTensor) -> int:
    """Remembers it. Raises ValueError for what is no tensor of numbers."""
    if not hasattr(tensor, "data_ptr"):  # isinstance of a Protocol takes 7 us
        raise ValueError(f"tensor must be a torch tensor, got {type(tensor).__name__}")
    code = _TYPES.get(str(tensor.dtype))
    if code is None:
        raise _wrong(tensor)
    _codes[tensor.dtype] = code
    return code


def _wrong(tensor: TorchTensor) -> ValueError:
    return ValueError(
        f"tensor must be contiguous numbers on the CPU, got {tensor.dtype} on {tensor.device.type}"
    )
