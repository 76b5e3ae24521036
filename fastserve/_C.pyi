"""The native engine; csrc/bindings holds what is typed here."""

from collections.abc import Sequence

from fastserve._C import ops as ops

__version__: str
BLOCK_SIZE: int

Address = tuple[int, int]  # byte offset in a program's arena, row stride in elements

class GgufTensor:
    name: str
    type: int
    type_name: str
    supported: bool
    shape: tuple[int, ...]
    n: int
    k: int
    offset: int
    nbytes: int

class GgufFile:
    path: str
    version: int
    metadata: dict[str, object]
    tensors: dict[str, GgufTensor]
    def __init__(self, path: str) -> None: ...
    def data_address(self, name: str) -> int: ...
    def read(self, name: str) -> bytes: ...

class PackedWeight:
    n: int
    k: int
    type: str
    nbytes: int
    address: int
    def __init__(self, type: str, n: int, k: int) -> None: ...
    def pack(
        self,
        gguf_type: int,
        address: int,
        file_k: int,
        *,
        rows: tuple[int, int],
        cols: tuple[int, int],
        at: int = 0,
    ) -> None: ...
    def pack_f32(self, address: int, ldx: int) -> None: ...
    def dequantise(self) -> bytes: ...

def packed_type(gguf_type: int) -> str: ...
def isas() -> list[tuple[str, bool, str]]: ...
def isa() -> str: ...
def matmul_scratch_bytes(w: PackedWeight, rows: int) -> int: ...
def sample_scratch_bytes(num_threads: int, vocab_size: int) -> int: ...

class SharedRegion:
    fd: int
    num_ranks: int
    extra_address: int
    extra_bytes: int
    failed: bool
    @staticmethod
    def create(num_ranks: int, symmetric_bytes: int, extra_bytes: int) -> SharedRegion: ...
    @staticmethod
    def attach(fd: int) -> SharedRegion: ...
    def raise_epoch(self) -> None: ...

class Exchange:
    rank: int
    size: int
    failed: bool
    tiles_sent_early: int
    def __init__(self, region: SharedRegion, rank: int) -> None: ...
    def all_reduce(self, address: int, rows: int, d: int) -> None: ...
    def barrier(self) -> None: ...
    def raise_epoch(self) -> None: ...

class Mailbox:
    @staticmethod
    def local(capacity: int) -> Mailbox: ...
    @staticmethod
    def at(address: int, capacity: int, num_readers: int, create: bool, owner: object) -> Mailbox: ...
    @staticmethod
    def bytes(capacity: int) -> int: ...
    def write(self, message: bytes, timeout_ms: int) -> bool: ...
    def read(self, reader: int, spin_us: int, timeout_ms: int) -> bytes | None: ...
    def close(self) -> None: ...

class KvCache:
    num_blocks: int

class Program:
    num_ops: int
    def __init__(
        self,
        *,
        max_tokens: int,
        max_samples: int,
        num_slots: int,
        max_blocks: int,
        vocab_size: int,
        num_blocks: list[int],
        exchange: Exchange | None = None,
    ) -> None: ...
    def allocate_arena(self, num_bytes: int) -> None: ...
    def read_buffer(self, offset: int, num_bytes: int) -> bytes: ...
    def add_kv_cache(self, type: str, group: int, num_kv_heads: int, head_dim: int) -> KvCache: ...
    def add_embed(self, table: int, gguf_type: int, row_bytes: int, d: int, out: Address) -> None: ...
    def add_rms_norm(
        self, rows: str, x: Address | None, residual: Address, weight: list[float], eps: float, out: Address
    ) -> None: ...
    def add_matmul(self, rows: str, x: Address, w: PackedWeight, y: Address, scratch: int) -> None: ...
    def add_matmul_all_reduce(self, x: Address, w: PackedWeight, y: Address, scratch: int) -> None: ...
    def add_rotary(
        self, q: Address, k: Address, inv_freq: list[float], num_heads: int, num_kv_heads: int, head_dim: int
    ) -> None: ...
    def add_store_kv(self, k: Address, v: Address, cache: KvCache, group: int) -> None: ...
    def add_paged_attention(
        self,
        q: Address,
        cache: KvCache,
        group: int,
        kv_of_head: list[int],
        scale: float,
        window: int,
        out: Address,
    ) -> None: ...
    def add_silu_mul(self, x: Address, f: int, out: Address) -> None: ...
    def add_select_rows(self, x: Address, d: int, out: Address) -> None: ...
    def add_sample(self, logits: Address, n: int, vocab_begin: int, scratch: int) -> None: ...

class WorkerThread:
    ended: bool
    error: str
    def __init__(self, program: Program, cores: Sequence[int], steps: Mailbox, results: Mailbox) -> None: ...
    def stop(self) -> None: ...

def run_worker_loop(
    program: Program, cores: Sequence[int], steps: Mailbox, reader: int, results: Mailbox | None
) -> str: ...
