"""A row-parallel matmul and the sum over ranks: out = sum over r of x_r w_r^T, the same bits on every rank.

Rank r holds x_r [M, K_r] and w_r [N, K_r], of one dtype (bf16, fp16, fp32), rows contiguous, any row strides;
out [M, N] has x's dtype or is fp32. K_r may differ between ranks. `all_reduce` is the second half alone, for products
that were computed otherwise.

Exchange. One shot, pushed: `compute_and_push` computes a tile of this rank's product and stores it, rounded to out's
dtype, into the memory of every rank while other programs compute the next tiles; then it raises a flag there.
`wait_and_reduce` waits in each program for its own tile's flags and adds what has come. Ranks write to each other and
read only what is their own: a store that crosses NVLink holds nobody up, a load does. Two launches, because a wait must
never keep its own rank from computing what the peers wait for. R - 1 matrices leave each rank, R / 2 times as many as a
two-shot sum's, but after one wait: this is for decode, where a rank's tiles are kilobytes. It is there to be compared
with the CUDA kernel, which sums in the same order.

Order. Columns come in units of 128, U = ceil(N / 128) of them, and these in R chunks; unit u is of chunk
c = floor(((u + 1) R - 1) / U). A column of chunk c is p[c + 1] + p[c + 2] + ... + p[c], ranks modulo R, in fp32,
rounded once, as in the CUDA kernels. p[r] is what matmul gives, chains over ascending K, rounded to out's dtype: so the
bits are those of a matmul and an all-reduce behind it.

Areas. A rank has an *area* that all ranks have mapped: two words that count calls; flags [2 halves, source rank, tile];
then the slots of two halves, [source rank, M, N] in out's dtype. Calls are numbered 1, 2, ... Call n uses the half
n % 2 of every rank's area, and a flag holds the number of the call that filled its tile. Two halves suffice: who pushes
in call n + 2 has finished call n + 1, so it has seen every peer's flags of n + 1; a peer raises those in its own call
n + 1, which its stream began when its call n had ended: it has read all that call n + 2 overwrites. The number lies in
the area, so a CUDA graph counts on with every replay: the words are [finished, running]; who pushes reads the first and
writes the second, wait_and_reduce does the opposite, so neither word is read in the launch that writes it.

Visibility. A program's threads store their parts of a tile, meet at a barrier, then one of them raises the flags with
release at system scope, which covers what the barrier ordered before it. The flag is read with acquire at system
scope by one thread, and a barrier hands it on (Triton's, for a scalar).

Loss. Every wait also polls an epoch word and ends once that is not 0; `out` is garbage then.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

ENOUGH_PROGRAMS = 100  # most of the 108 SMs of an A100, the 132 of an H100, the 148 of a B200 have one
SMALLEST_TILE = (16, 32)
ELEMENTS_PER_WARP = 1024  # of a tile that is summed: 32 a thread, one part of each in flight
CHUNK_COLUMNS = 128  # chunks end at multiples of this: kChunkColumns of csrc/cuda/peers.cuh
WORDS_BYTES = tl.constexpr(128)  # of the two words that count calls: a cache line
MAX_TILES = tl.constexpr(8192)  # of a call: 512 rows of 8192 columns in the smallest tiles


@dataclass(frozen=True, slots=True)
class Peers:
    """How a rank reaches the memory of its group.

    areas      [R] int64, on the rank's device: addresses (16 divides them) of the ranks' areas, which begin as zeros
    area_bytes the same for all of them
    epoch      address of an int32: 0 until a rank is lost
    """

    rank: int
    areas: Tensor
    area_bytes: int
    epoch: int

    @property
    def num_ranks(self) -> int:
        return len(self.areas)

    @property
    def half_bytes(self) -> int:
        """Of the slots of one call."""
        return (self.area_bytes - slots_offset(self.num_ranks)) // 2 // 128 * 128

    def max_rows(self, num_columns: int, element_bytes: int) -> int:
        """What goes in one call, whatever its tile. Raises ValueError where not even one row does."""
        by_slots = self.half_bytes // (self.num_ranks * num_columns * element_bytes)
        by_flags = MAX_TILES.value // triton.cdiv(num_columns, SMALLEST_TILE[1]) * SMALLEST_TILE[0]
        rows: int = min(by_slots, by_flags)
        if rows == 0:
            raise ValueError(
                f"out must have rows that fit an area of {self.area_bytes} bytes, got {num_columns} columns of "
                f"{element_bytes} bytes from {self.num_ranks} ranks"
            )
        return rows


def slots_offset(num_ranks: int) -> int:
    """Bytes of an area before its slots."""
    flags: int = 2 * num_ranks * MAX_TILES.value
    return int(WORDS_BYTES.value) + 4 * flags


@dataclass(frozen=True, slots=True)
class Tile:
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def choose_tile(m: int, n: int, dtype: torch.dtype, architecture: int) -> Tile:
    """The same on all ranks, so not by K. One kind of MMA per architecture, as in matmul: from sm_90 on, 64 rows."""
    tiles: tuple[Tile, ...]
    if dtype == torch.float32:
        tiles = (Tile(64, 64, 32, 8, 3), Tile(16, 32, 32, 4, 4))
    elif 90 <= architecture < 120:
        tiles = (Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 5), Tile(64, 32, 64, 4, 6))
    else:
        tiles = (Tile(128, 128, 64, 8, 4), Tile(64, 64, 64, 4, 5), Tile(16, 32, 64, 4, 8))
    for tile in tiles:
        if m > tile.block_m // 2 and -(-m // tile.block_m) * -(-n // tile.block_n) >= ENOUGH_PROGRAMS:
            return tile
    return tiles[-1]


@triton.jit  # type: ignore[untyped-decorator]
def _load(source, ld, rows, num_rows, columns, num_columns, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Zeros where the matrix has ended. WHOLE: the columns do not go beyond that."""
    inside = (rows < num_rows)[:, None]
    if not WHOLE:
        inside &= (columns < num_columns)[None, :]
    return tl.load(source + rows.to(tl.int64)[:, None] * ld + columns[None, :], inside, 0)


@triton.jit
def _words_of(areas, rank):  # type: ignore[no-untyped-def]
    return tl.load(areas + rank).to(tl.pointer_type(tl.int32))


@triton.jit  # type: ignore[untyped-decorator]
def _flag_of(areas, rank, half, source, tile, NUM_RANKS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    return _words_of(areas, rank) + WORDS_BYTES // 4 + (half * NUM_RANKS + source) * MAX_TILES + tile


@triton.jit  # type: ignore[untyped-decorator]
def _slot_of(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    areas, rank, half, half_bytes, source, M, N, NUM_RANKS: tl.constexpr, DTYPE: tl.constexpr
):
    """A half begins at the same byte in every call: the one before may still read the other."""
    FIRST: tl.constexpr = WORDS_BYTES + 2 * NUM_RANKS * MAX_TILES * 4
    address = tl.load(areas + rank) + FIRST + half.to(tl.int64) * half_bytes
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16) + source.to(tl.int64) * M * N


@triton.jit
def _is_lost(epoch):  # type: ignore[no-untyped-def]
    """Read by one thread for all: were each to look for itself, some could leave a wait whose barriers others need."""
    return tl.atomic_add(epoch.to(tl.pointer_type(tl.int32)), 0, sem="relaxed", scope="sys") != 0


@triton.jit  # type: ignore[untyped-decorator]
def _place_of(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The program's tile. They go down the rows: those that read the same weights run together."""
    tile = tl.program_id(0)
    num_m = tl.cdiv(M, BLOCK_M)
    return tile % num_m * BLOCK_M, tile // num_m * BLOCK_N


@triton.jit  # type: ignore[untyped-decorator]
def _push(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    part, row, column, areas, half_bytes, M, N, rank,
    NUM_RANKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile, to all ranks: the next one first, itself last, so that the links are shared out."""
    tile = tl.program_id(0)
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
    words = _words_of(areas, rank)
    number = tl.load(words) + 1
    half = number & 1
    for hop in tl.static_range(1, NUM_RANKS + 1):
        slot = _slot_of(areas, (rank + hop) % NUM_RANKS, half, half_bytes, rank, M, N, NUM_RANKS, part.dtype)
        tl.store(slot + offsets, part, inside)
    tl.debug_barrier()
    for hop in tl.static_range(1, NUM_RANKS):
        flag = _flag_of(areas, (rank + hop) % NUM_RANKS, half, rank, tile, NUM_RANKS)
        tl.atomic_xchg(flag, number, sem="release", scope="sys")
    if tile == 0:
        tl.store(words + 1, number)


@triton.jit(do_not_specialize=["M", "rank"])  # type: ignore[untyped-decorator]
def compute_and_push(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, w, out, areas, half_bytes, ldx, ldw, M, N, K, rank,
    NUM_RANKS: tl.constexpr, WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of `out` its type alone is asked for."""
    row, column = _place_of(M, N, BLOCK_M, BLOCK_N)
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        ks = k + tl.arange(0, BLOCK_K)
        a = _load(x, ldx, rows, M, ks, K, WHOLE_K)
        b = _load(w, ldw, columns, N, ks, K, WHOLE_K)
        total = tl.dot(a, b.T, total, input_precision="ieee")
    part = total.to(out.dtype.element_ty)
    _push(part, row, column, areas, half_bytes, M, N, rank, NUM_RANKS, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["M", "rank"])  # type: ignore[untyped-decorator]
def push(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, areas, half_bytes, ldx, M, N, rank,
    NUM_RANKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, column = _place_of(M, N, BLOCK_M, BLOCK_N)
    part = _load(x, ldx, row + tl.arange(0, BLOCK_M), M, column + tl.arange(0, BLOCK_N), N, False)
    _push(part, row, column, areas, half_bytes, M, N, rank, NUM_RANKS, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["M", "rank", "epoch"])  # type: ignore[untyped-decorator]
def wait_and_reduce(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    out, areas, half_bytes, epoch, ldo, M, N, rank,
    NUM_RANKS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tl.static_assert(CHUNK % BLOCK_N == 0)  # a tile is of one chunk
    tile = tl.program_id(0)
    words = _words_of(areas, rank)
    number = tl.load(words + 1)
    half = number & 1
    for hop in tl.static_range(1, NUM_RANKS):
        flag = _flag_of(areas, rank, half, (rank + hop) % NUM_RANKS, tile, NUM_RANKS)
        arrived = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
        while (arrived != number) & (not _is_lost(epoch)):
            arrived = tl.atomic_add(flag, 0, sem="acquire", scope="sys")

    row, column = _place_of(M, N, BLOCK_M, BLOCK_N)
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
    chunk = ((column // CHUNK + 1) * NUM_RANKS - 1) // tl.cdiv(N, CHUNK)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in tl.static_range(NUM_RANKS):
        source = (chunk + 1 + step) % NUM_RANKS
        slot = _slot_of(areas, rank, half, half_bytes, source, M, N, NUM_RANKS, out.dtype.element_ty)
        part = tl.load(slot + offsets, inside, 0.0).to(tl.float32)
        total = part if step == 0 else total + part
    tl.store(
        out + rows.to(tl.int64)[:, None] * ldo + columns[None, :], total.to(out.dtype.element_ty), inside
    )
    if tile == 0:
        tl.store(words, number)


def _architecture_of(tensor: Tensor) -> int:
    """10 * major + minor of its device's compute capability. CPU tensors are the interpreter's: sm_80."""
    if tensor.device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def matmul_all_reduce(
    x: Tensor, w: Tensor, peers: Peers, *, out: Tensor, architecture: int | None = None
) -> None:
    """All ranks make the same calls, with x [M, K_r], w [N, K_r] and out [M, N]. Raises ValueError for too large an N.

    architecture: to compile for, the same on all ranks; None: that of x's device
    """
    (m, k), n = x.shape, w.shape[0]
    architecture = architecture or _architecture_of(x)
    for rows in _calls(m, peers.max_rows(n, out.element_size())):
        some = x[rows]
        tile = choose_tile(some.shape[0], n, x.dtype, architecture)
        compute_and_push[_grid(tile, some.shape[0], n)](
            some, w, out, peers.areas, peers.half_bytes, x.stride(0), w.stride(0), some.shape[0], n, k, peers.rank,
            peers.num_ranks, k % tile.block_k == 0, tile.block_m, tile.block_n, tile.block_k,
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
        _collect(out[rows], peers, tile)


def all_reduce(x: Tensor, peers: Peers, *, architecture: int | None = None) -> None:
    """x [M, N] = its sum over the ranks, in place, as if x had just been computed by matmul_all_reduce."""
    n = x.shape[1]
    architecture = architecture or _architecture_of(x)
    for rows in _calls(x.shape[0], peers.max_rows(n, x.element_size())):
        some = x[rows]
        tile = choose_tile(some.shape[0], n, x.dtype, architecture)
        push[_grid(tile, some.shape[0], n)](
            some, peers.areas, peers.half_bytes, x.stride(0), some.shape[0], n, peers.rank,
            peers.num_ranks, tile.block_m, tile.block_n, num_warps=_warps_without_product(tile),
        )  # fmt: skip
        _collect(some, peers, tile)


def _collect(out: Tensor, peers: Peers, tile: Tile) -> None:
    m, n = out.shape
    wait_and_reduce[_grid(tile, m, n)](
        out, peers.areas, peers.half_bytes, peers.epoch, out.stride(0), m, n, peers.rank,
        peers.num_ranks, CHUNK_COLUMNS, tile.block_m, tile.block_n, num_warps=_warps_without_product(tile),
    )  # fmt: skip


def _calls(m: int, max_rows: int) -> list[slice]:
    return [slice(start, min(start + max_rows, m)) for start in range(0, m, max_rows)]


def _grid(tile: Tile, m: int, n: int) -> tuple[int]:
    return (triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n),)


def _warps_without_product(tile: Tile) -> int:
    return max(4, tile.block_m * tile.block_n // ELEMENTS_PER_WARP)
