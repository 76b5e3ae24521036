from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastserve.kernels.matmul import matmul
from fastserve.kernels.matmul_all_reduce import (
    CHUNK_COLUMNS,
    MAX_TILES,
    SMALLEST_TILE,
    Peers,
    Tile,
    all_reduce,
    choose_tile,
    matmul_all_reduce,
)
from torch import Tensor

from . import matmul_all_reduce_ranks as ranks
from .matmul_all_reduce_ranks import CALLS, GROUPS, LOST_RANKS, operands

TIMEOUT_S = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks of all groups left behind. They start once: importing torch takes longer than all calls."""
    folder = tmp_path_factory.mktemp("ranks")
    regions: list[tuple[str, int, int]] = []
    for name, num_ranks in (*((str(size), size) for size in GROUPS), ("lost", LOST_RANKS)):
        descriptor = os.memfd_create(f"fastserve-{name}")
        os.truncate(descriptor, ranks.region_bytes(num_ranks))
        regions.append((name, num_ranks, descriptor))
    processes = []
    try:
        for rank in range(max(GROUPS)):
            groups = [f"{name}:{descriptor}" for name, size, descriptor in regions if rank < size]
            processes.append(
                subprocess.Popen(
                    [sys.executable, ranks.__file__, str(rank), str(folder), *groups],
                    pass_fds=[descriptor for _, _, descriptor in regions],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                pytest.fail(process.communicate()[1])
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            _, errors = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        for _, _, descriptor in regions:
            os.close(descriptor)
    return folder


def results(folder: Path, num_ranks: int, call_idx: int) -> list[Tensor]:
    files = (folder / f"{num_ranks}_{call_idx}_{rank}.npy" for rank in range(num_ranks))
    return [torch.from_numpy(np.load(file)) for file in files]


def chunk_of(column: int, n: int, num_ranks: int) -> int:
    """Vectors of 16 bytes of a row, cut into one part per rank: the part that holds this column's."""
    num_units = -(-n // CHUNK_COLUMNS)
    unit = column // CHUNK_COLUMNS
    return next(c for c in range(num_ranks) if unit < (c + 1) * num_units // num_ranks)


@pytest.mark.parametrize("num_ranks", GROUPS)
@pytest.mark.parametrize("call_idx", range(len(CALLS)))
def test_all_ranks_end_with_the_same_bits(folder: Path, num_ranks: int, call_idx: int) -> None:
    first, *others = results(folder, num_ranks, call_idx)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)


def test_nothing_beside_the_output_is_written(folder: Path) -> None:
    for call_idx in range(len(CALLS)):
        out = results(folder, 2, call_idx)[0]
        assert out[:, :3].isnan().all()
        assert out[:, -1].isnan().all()


def parts_of(call_idx: int, num_ranks: int) -> list[Tensor]:
    """What a matmul gives on each rank."""
    out_dtype = CALLS[call_idx].out_dtype
    return [
        (x.float() @ w.float().T).to(out_dtype)
        for x, w in (operands(call_idx, rank, num_ranks) for rank in range(num_ranks))
    ]


def sum_from(parts: list[Tensor], first: int) -> Tensor:
    """In fp32, around the ring."""
    total = parts[first % len(parts)].float()
    for step in range(1, len(parts)):
        total = total + parts[(first + step) % len(parts)].float()
    return total


@pytest.mark.parametrize("num_ranks", GROUPS)
@pytest.mark.parametrize("call_idx", range(len(CALLS)))
def test_it_is_a_matmul_whose_columns_are_summed_in_the_order_of_their_chunks(
    folder: Path, num_ranks: int, call_idx: int
) -> None:
    call = CALLS[call_idx]
    out = results(folder, num_ranks, call_idx)[0][:, 3:-1]
    parts = parts_of(call_idx, num_ranks)
    sums = [sum_from(parts, chunk + 1) for chunk in range(num_ranks)]
    chunks = [chunk_of(column, call.n, num_ranks) for column in range(call.n)]
    expected = torch.stack([sums[chunk][:, column] for column, chunk in enumerate(chunks)], dim=1)
    assert torch.equal(out, expected.to(call.out_dtype))
    if call.ordered and num_ranks > 2:  # of two, either order is the same
        assert not torch.equal(sums[chunks[0]], sums[chunks[0] - 1])


def test_ranks_stop_waiting_for_one_that_never_comes_when_the_epoch_is_raised(folder: Path) -> None:
    for rank in range(LOST_RANKS - 1):
        assert (folder / f"released_{rank}").exists()


def alone(half_bytes: int) -> tuple[Peers, Tensor, Tensor]:
    """A group of one, its two words, and the two halves of its slots: views of its area, which they keep."""
    first = 128 + 2 * MAX_TILES.value * 4
    area = torch.zeros(first + 2 * half_bytes, dtype=torch.uint8)
    peers = Peers(0, torch.tensor([area.data_ptr()]), area.numel(), epoch=area.data_ptr() + 64)
    assert peers.half_bytes == half_bytes
    return peers, area[:8].view(torch.int32), area[first:].view(2, half_bytes)


def test_alone_it_is_a_matmul() -> None:
    peers, _, _ = alone(2048)
    x, w = torch.randn(5, 48).half(), torch.randn(37, 48).half()
    out, expected = torch.empty(5, 37), torch.empty(5, 37)
    matmul_all_reduce(x, w, peers, out=out)
    matmul(x, w, out=expected)
    assert torch.equal(out, expected)


def test_calls_alternate_between_two_halves_and_are_counted_in_memory() -> None:
    peers, words, halves = alone(512)
    for call in range(1, 4):
        halves.fill_(77)
        matmul_all_reduce(torch.ones(4, 8), torch.ones(32, 8), peers, out=torch.empty(4, 32))
        assert words.tolist() == [call, call]
        assert (halves[call % 2].view(torch.float32) == 8).all()
        assert (halves[1 - call % 2] == 77).all()


def test_a_half_begins_at_the_same_byte_whatever_the_type() -> None:
    """Elsewhere it would overwrite what a slower rank still reads of the call before."""
    peers, _, halves = alone(512)
    matmul_all_reduce(torch.ones(4, 8), torch.ones(32, 8), peers, out=torch.empty(4, 32))
    before = halves[1].clone()
    all_reduce(torch.ones(8, 32).half(), peers)
    assert torch.equal(halves[1], before)
    assert (halves[0].view(torch.float16) == 1).all()


def test_no_rows_are_no_call() -> None:
    peers, words, _ = alone(512)
    matmul_all_reduce(torch.empty(0, 8), torch.ones(32, 8), peers, out=torch.empty(0, 32))
    assert words.tolist() == [0, 0]


def test_a_call_has_as_many_rows_as_slots_and_flags_hold() -> None:
    peers = Peers(0, torch.zeros(8, dtype=torch.int64), 33 << 20, 0)
    assert peers.half_bytes >= 16 << 20
    assert peers.max_rows(8192, 2) == peers.half_bytes // (8 * 8192 * 2)
    assert peers.max_rows(1, 2) == 16 * MAX_TILES.value
    with pytest.raises(
        ValueError, match=r"out must have rows that fit an area of .* bytes, got 9000000 columns"
    ):
        peers.max_rows(9_000_000, 2)


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_tile_is_smaller_than_flags_are_made_for(architecture: int, dtype: torch.dtype) -> None:
    for m in (1, 16, 64, 200, 4096):
        for n in (1, 4096):
            tile = choose_tile(m, n, dtype, architecture)
            assert tile.block_m >= SMALLEST_TILE[0]
            assert tile.block_n >= SMALLEST_TILE[1]
            assert dtype == torch.float32 or architecture == 80 or tile.block_m >= 64


def test_tiles_fill_the_sms() -> None:
    assert choose_tile(1, 4096, torch.bfloat16, 80) == Tile(16, 32, 64, 4, 8)
    assert choose_tile(1, 4096, torch.bfloat16, 90) == Tile(64, 32, 64, 4, 6)  # 64 rows: wgmma, as all others
    assert choose_tile(128, 4096, torch.bfloat16, 90) == Tile(64, 64, 64, 4, 5)
    assert choose_tile(4096, 4096, torch.bfloat16, 100) == Tile(128, 128, 64, 8, 3)
