"""The CUDA ops (csrc/cuda/launch.h), where fastserve was built with nvcc.

Addresses are of device memory, strides in elements, types are indices of _C.DATA_TYPES, epilogues of EPILOGUES; a
stream is a cudaStream_t. Everything is enqueued on the current device. ValueError says what was wrong; RuntimeError
has CUDA's own words, "no driver" among them.
"""

from collections.abc import Sequence

EPILOGUES: tuple[str, ...]
TRITON_AREA_BYTES: int

def device_count() -> int: ...
def device_info(device: int) -> tuple[str, int, int]:
    """(name, bytes of memory, 10 * major + minor of the compute capability); makes no context there."""

def bus_id() -> str:
    """Of the current device."""

def can_reach(bus_id: str) -> bool:
    """Whether the current device may write that one's memory."""

def exchange_bytes(size: int) -> int: ...

class ExchangeBuffer:
    """A rank's exchange buffer on the current device (csrc/cuda/exchange_buffer.h).

    epoch_address: of a group's epoch (_C.Exchange), in memory that `owner` keeps mapped; 0: an epoch of its own
    """

    def __init__(self, rank: int, size: int, epoch_address: int = 0, owner: object = None) -> None: ...
    @property
    def handle(self) -> bytes: ...
    def connect(self, handles: Sequence[bytes]) -> None: ...
    def raise_epoch(self) -> None: ...
    @property
    def epoch_address(self) -> int:
        """Where kernels see the epoch: 0 until a rank is lost."""
    @property
    def triton_areas(self) -> list[int]:
        """The ranks' areas for Triton, TRITON_AREA_BYTES each. Raises ValueError before connect."""

def all_reduce(
    buffer: ExchangeBuffer, x: int, ldx: int, out: int, ldo: int, rows: int, d: int, type: int, stream: int, /
) -> None: ...
def add_rms_norm(
    x: int,
    ldx: int,
    residual: int,
    ldr: int,
    weight: int,
    eps: float,
    out: int,
    ldo: int,
    rows: int,
    d: int,
    type: int,
    stream: int,
    /,
) -> None: ...
def all_reduce_add_rms_norm(
    buffer: ExchangeBuffer,
    x: int,
    ldx: int,
    residual: int,
    ldr: int,
    weight: int,
    eps: float,
    out: int,
    ldo: int,
    rows: int,
    d: int,
    x_type: int,
    type: int,
    stream: int,
    /,
) -> None: ...
def matmul(
    x: int,
    ldx: int,
    w: int,
    ldw: int,
    y: int,
    ldy: int,
    m: int,
    n: int,
    k: int,
    type: int,
    y_type: int,
    bias: int,
    epilogue: int,
    stream: int,
    /,
) -> None: ...
def matmul_all_reduce(
    buffer: ExchangeBuffer,
    x: int,
    ldx: int,
    w: int,
    ldw: int,
    y: int,
    ldy: int,
    m: int,
    n: int,
    k: int,
    type: int,
    y_type: int,
    stream: int,
    /,
) -> None: ...
def swap(
    from_: int, to: int, from_blocks: int, to_blocks: int, num_blocks: int, block_bytes: int, stream: int, /
) -> None: ...
