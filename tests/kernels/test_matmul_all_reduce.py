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
    SMALLEST_TILE,
    Peers,
    Tile,
    choose_tile,
    matmul_all_reduce,
    most_tiles,
)
from torch import Tensor

from fastserve.ops import reference

from . import matmul_all_reduce_ranks as ranks
from .matmul_all_reduce_ranks import CALLS, FIRST_EPOCH, GROUPS, LOST_RANKS, operands

TIMEOUT_S = 120
# Of the sum's own rounding to `out`, and of 4 x 86 fp32 additions relative to the largest sum.
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-11}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks of all groups left behind. They start once: importing torch takes longer than all calls."""
    folder = tmp_path_factory.mktemp("ranks")
    regions: list[tuple[str, int, int]] = []
    for name, num_ranks in (*((str(size), size) for size in GROUPS), ("lost", LOST_RANKS)):
        descriptor = os.memfd_create(f"fastserve-{name}")
        os.truncate(descriptor, ranks.region_bytes(num_ranks))
        os.pwrite(descriptor, FIRST_EPOCH.to_bytes(4, sys.byteorder), 0)
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


@pytest.mark.parametrize("num_ranks", GROUPS)
@pytest.mark.parametrize("call_idx", range(len(CALLS)))
def test_the_sum_is_that_of_the_reference(folder: Path, num_ranks: int, call_idx: int) -> None:
    call = CALLS[call_idx]
    out = results(folder, num_ranks, call_idx)[0]
    parts = [
        reference.matmul(x.float(), w.float())
        for x, w in (operands(call_idx, r, num_ranks) for r in range(num_ranks))
    ]
    expected = sum(parts[1:], parts[0])
    scale = float(torch.stack(parts).abs().max())
    torch.testing.assert_close(
        out[:, 3:-1].float(), expected, rtol=ROUNDING[call.out_dtype], atol=1e-6 * scale
    )


def test_nothing_beside_the_output_is_written(folder: Path) -> None:
    for call_idx in range(len(CALLS)):
        out = results(folder, 2, call_idx)[0]
        assert out[:, :3].isnan().all()
        assert out[:, -1].isnan().all()


@pytest.mark.parametrize("num_ranks", GROUPS)
@pytest.mark.parametrize("call_idx", [idx for idx, call in enumerate(CALLS) if call.ordered])
def test_a_column_is_summed_in_the_order_of_its_chunk(folder: Path, num_ranks: int, call_idx: int) -> None:
    call = CALLS[call_idx]
    out = results(folder, num_ranks, call_idx)[0][:, 3:-1]
    parts = [x.float() @ w.float().T for x, w in (operands(call_idx, r, num_ranks) for r in range(num_ranks))]
    expected = torch.empty(call.m, call.n)
    for column in range(call.n):
        chunk = chunk_of(column, call.n, num_ranks)
        total = parts[(chunk + 1) % num_ranks][:, column]
        for step in range(2, num_ranks + 1):
            total = total + parts[(chunk + step) % num_ranks][:, column]
        expected[:, column] = total
    assert torch.equal(out, expected.to(call.out_dtype))


def test_ranks_stop_waiting_for_one_that_never_comes_when_the_epoch_is_raised(folder: Path) -> None:
    for rank in range(LOST_RANKS - 1):
        assert (folder / f"released_{rank}").exists()


def alone(rows: int, columns: int) -> tuple[Peers, tuple[Tensor, Tensor]]:
    """A group of one, and its memory."""
    partials = torch.full((2, 1, rows * columns), torch.nan)
    flags = torch.zeros(2, 1, most_tiles(rows, columns), dtype=torch.int32)
    peers = Peers(
        rank=0,
        partials=torch.tensor([partials.data_ptr()]),
        flags=torch.tensor([flags.data_ptr()]),
        sequence=torch.zeros(2, dtype=torch.int32),
        epoch=torch.zeros(1, dtype=torch.int32),
        expected_epoch=0,
        max_rows=rows,
        max_columns=columns,
    )
    return peers, (partials, flags)


def test_alone_it_is_a_matmul() -> None:
    peers, _memory = alone(8, 40)
    x, w = torch.randn(5, 48).half(), torch.randn(37, 48).half()
    out, expected = torch.empty(5, 37), torch.empty(5, 37)
    matmul_all_reduce(x, w, peers, out=out)
    matmul(x, w, out=expected)
    assert torch.equal(out, expected)


def test_calls_alternate_between_two_halves_and_are_counted_in_memory() -> None:
    peers, (partials, _) = alone(4, 32)
    for call in range(1, 4):
        partials.fill_(torch.nan)
        matmul_all_reduce(torch.ones(4, 8), torch.ones(32, 8), peers, out=torch.empty(4, 32))
        assert peers.sequence.tolist() == [call, call]
        assert (partials[call % 2] == 8).all()
        assert partials[1 - call % 2].isnan().all()


def test_no_rows_are_no_call() -> None:
    peers, _memory = alone(4, 32)
    matmul_all_reduce(torch.empty(0, 8), torch.ones(32, 8), peers, out=torch.empty(0, 32))
    assert peers.sequence.tolist() == [0, 0]


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
