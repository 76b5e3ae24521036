"""A row-parallel matmul and the sum over ranks: out = sum over r of x_r w_r^T, the same bits on every rank.

Rank r holds x_r [M, K_r] and w_r [N, K_r], of one dtype (bf16, fp16, fp32), rows contiguous, any row strides;
out [M, N] has x's dtype or is fp32. K_r may differ between ranks.

Exchange. One shot, pushed: `compute_and_push` computes a tile of partial sums and stores it, fp32, into the memory of
every rank while other programs compute the next tiles; then it raises a flag there. `wait_and_reduce` waits in each
program for its own tile's flags and adds what has come. Ranks write to each other and read only what is their own: a
store that crosses NVLink holds nobody up, a load does. Two launches, because a wait must never keep its own rank
from computing what the peers wait for. R - 1 matrices of fp32 leave each rank, R / 2 times as many as a two-shot
sum's, but after one wait: this is for decode, where a rank's tiles are kilobytes. It is there to be compared with the
CUDA kernel, which sums in the same order.

Order. Columns come in units of 128, U = ceil(N / 128) of them, and these in R chunks; unit u is of chunk
c = floor(((u + 1) R - 1) / U). A column of chunk c is p[c + 1] + p[c + 2] + ... + p[c], ranks modulo R, in fp32,
rounded once, as in the CUDA kernels. Partial sums are chains over ascending K, as in matmul.

Slots and flags. Calls are numbered 1, 2, ... Call n uses the half n % 2 of every rank's memory: half, source rank,
element (or tile). A flag holds the number of the call that filled its tile. Two halves suffice: who pushes in call
n + 2 has finished call n + 1, so it has seen every peer's flags of n + 1; a peer raises those in its own call n + 1,
which its stream began when its call n had ended: it has read all that call n + 2 overwrites. The number lives in the
rank's memory, so a CUDA graph counts on with every replay: `sequence` is [finished, running]; compute_and_push reads
the first and writes the second, wait_and_reduce does the opposite, so neither word is read in the launch that
writes it.

Visibility. A program's threads store their parts of a tile, meet at a barrier, then one of them raises the flags with
release at system scope, which covers what the barrier ordered before it. The flag is read with acquire at system
scope by one thread, and a barrier hands it on (Triton's, for a scalar).

Loss. Every wait also polls an epoch word and ends when that is not what the group started with; `out` is garbage then.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

ENOUGH_PROGRAMS = 100  # most of the 108 SMs of an A100, the 132 of an H100, the 148 of a B200 have one
SMALLEST_TILE = (16, 32)
ELEMENTS_PER_WARP = 1024  # of a tile that is summed: 32 a thread, one partial sum of each in flight
CHUNK_COLUMNS = 128  # chunks end at multiples of this: kChunkColumns of csrc/cuda/peers.cuh


@dataclass(frozen=True, slots=True)
class Peers:
    """How a rank reaches the memory of its group; tensors are on its device. max_rows and max_columns are the group's.

    partials [R] int64: addresses (16 divides them) of the ranks' partial sums, fp32 [2, R, max_rows * max_columns]
    flags    [R] int64: addresses of the ranks' flags, int32 [2, R, most_tiles(max_rows, max_columns)], zeros
    sequence [2] int32: zeros at first, this rank's own
    epoch    [1] int32: the word that is raised when a rank is lost
    """

    rank: int
    partials: Tensor
    flags: Tensor
    sequence: Tensor
    epoch: Tensor
    expected_epoch: int
    max_rows: int
    max_columns: int


@dataclass(frozen=True, slots=True)
class Tile:
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def most_tiles(rows: int, columns: int) -> int:
    """Flags that a rank needs per half and source, whatever tile is chosen."""
    return triton.cdiv(rows, SMALLEST_TILE[0]) * triton.cdiv(columns, SMALLEST_TILE[1])  # type: ignore[no-any-return]


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
def _float_pointer(address):  # type: ignore[no-untyped-def]
    return tl.multiple_of(tl.load(address).to(tl.pointer_type(tl.float32)), 16)


@triton.jit
def _flag_pointer(address):  # type: ignore[no-untyped-def]
    return tl.load(address).to(tl.pointer_type(tl.int32))


@triton.jit
def _epoch_of(epoch):  # type: ignore[no-untyped-def]
    """Read by one thread for all: were each to look for itself, some could leave a wait whose barriers others need."""
    return tl.atomic_add(epoch, 0, sem="relaxed", scope="sys")


@triton.jit(do_not_specialize=["M", "rank"])  # type: ignore[untyped-decorator]
def compute_and_push(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, w, partials, flags, sequence, ldx, ldw, M, N, K, max_elements, max_tiles, rank,
    NUM_RANKS: tl.constexpr, WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    num_m = tl.cdiv(M, BLOCK_M)  # tiles go down the rows: those that read the same weights run together
    rows = tile % num_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile // num_m * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        ks = k + tl.arange(0, BLOCK_K)
        a = _load(x, ldx, rows, M, ks, K, WHOLE_K)
        b = _load(w, ldw, columns, N, ks, K, WHOLE_K)
        total = tl.dot(a, b.T, total, input_precision="ieee")

    number = tl.load(sequence) + 1
    slot = ((number & 1) * NUM_RANKS + rank).to(tl.int64)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
    for hop in tl.static_range(
        1, NUM_RANKS + 1
    ):  # the next rank first, itself last: the links are shared out
        peer = (rank + hop) % NUM_RANKS
        tl.store(_float_pointer(partials + peer) + slot * max_elements + offsets, total, inside)
    tl.debug_barrier()
    for hop in tl.static_range(1, NUM_RANKS):
        peer = (rank + hop) % NUM_RANKS
        tl.atomic_xchg(
            _flag_pointer(flags + peer) + slot * max_tiles + tile, number, sem="release", scope="sys"
        )
    if tile == 0:
        tl.store(sequence + 1, number)


@triton.jit(do_not_specialize=["M", "rank", "expected_epoch"])  # type: ignore[untyped-decorator]
def wait_and_reduce(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    out, partials, flags, sequence, epoch, expected_epoch, ldo, M, N, max_elements, max_tiles, rank,
    NUM_RANKS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    num_m = tl.cdiv(M, BLOCK_M)
    rows = tile % num_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile // num_m * BLOCK_N + tl.arange(0, BLOCK_N)
    number = tl.load(sequence + 1)
    half = ((number & 1) * NUM_RANKS).to(tl.int64)
    for hop in tl.static_range(1, NUM_RANKS):
        source = (rank + hop) % NUM_RANKS
        flag = _flag_pointer(flags + rank) + (half + source) * max_tiles + tile
        arrived = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
        while (arrived != number) & (_epoch_of(epoch) == expected_epoch):
            arrived = tl.atomic_add(flag, 0, sem="acquire", scope="sys")

    inside = (rows < M)[:, None] & (columns < N)[None, :]
    offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
    chunk = ((columns // CHUNK + 1) * NUM_RANKS - 1) // tl.cdiv(N, CHUNK)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in tl.static_range(NUM_RANKS):
        source = (half + (chunk + 1 + step) % NUM_RANKS)[None, :]
        part = tl.load(_float_pointer(partials + rank) + source * max_elements + offsets, inside, 0.0)
        total = part if step == 0 else total + part
    tl.store(
        out + rows.to(tl.int64)[:, None] * ldo + columns[None, :], total.to(out.dtype.element_ty), inside
    )
    if tile == 0:
        tl.store(sequence, number)


def matmul_all_reduce(
    x: Tensor, w: Tensor, peers: Peers, *, out: Tensor, architecture: int | None = None
) -> None:
    """All ranks make the same calls, with x [M, K_r], w [N, K_r] and out [M, N]; N at most peers.max_columns.

    architecture: to compile for, the same on all ranks; None: that of x's device
    """
    if architecture is None:
        architecture = 80  # the interpreter's
        if x.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(x.device)
            architecture = 10 * major + minor
    for start in range(0, x.shape[0], peers.max_rows):
        rows = slice(start, start + peers.max_rows)
        _one_call(x[rows], w, peers, out[rows], architecture)


def _one_call(x: Tensor, w: Tensor, peers: Peers, out: Tensor, architecture: int) -> None:
    (m, k), n = x.shape, w.shape[0]
    tile = choose_tile(m, n, x.dtype, architecture)
    grid = (triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n),)
    num_ranks = peers.partials.shape[0]
    max_elements = peers.max_rows * peers.max_columns
    max_tiles = most_tiles(peers.max_rows, peers.max_columns)
    compute_and_push[grid](
        x, w, peers.partials, peers.flags, peers.sequence, x.stride(0), w.stride(0), m, n, k, max_elements, max_tiles,
        peers.rank, num_ranks, k % tile.block_k == 0, tile.block_m, tile.block_n, tile.block_k,
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    wait_and_reduce[grid](
        out, peers.partials, peers.flags, peers.sequence, peers.epoch, peers.expected_epoch, out.stride(0), m, n,
        max_elements, max_tiles, peers.rank, num_ranks, CHUNK_COLUMNS, tile.block_m, tile.block_n,
        num_warps=max(4, tile.block_m * tile.block_n // ELEMENTS_PER_WARP),
    )  # fmt: skip
