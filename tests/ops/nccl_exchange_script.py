"""Sums over ranks by NcclExchange, whose moves gloo makes on CPU tensors; prints what differs from the stated order."""

from __future__ import annotations

import torch

from fastserve.distributed.group import init_group
from fastserve.distributed.nccl_exchange import NcclExchange, chunk_begin

CASES = [
    (1, 1, torch.float32),
    (1, 576, torch.bfloat16),
    (3, 300, torch.float16),
    (40, 2000, torch.float32),  # by chunks, the last one narrower
    (97, 640, torch.bfloat16),
    (200, 130, torch.float32),  # more ranks than chunks
    (0, 64, torch.float32),
]


def part(case: int, rank: int) -> torch.Tensor:
    rows, columns, dtype = CASES[case]
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(10 * case + rank))
    return values.to(dtype)


def expected(case: int, size: int) -> torch.Tensor:
    """Chunk c begins with rank c + 1."""
    parts = [part(case, rank) for rank in range(size)]
    out = torch.empty_like(parts[0])
    for chunk in range(size):
        columns = slice(*(chunk_begin(c, size, out.shape[1]) for c in (chunk, chunk + 1)))
        total = parts[(chunk + 1) % size][:, columns].float()
        for step in range(2, size + 1):
            total = total + parts[(chunk + step) % size][:, columns].float()
        out[:, columns] = total.to(out.dtype)
    return out


def main() -> None:
    group = init_group()
    exchange = NcclExchange(group.exchange, backend="gloo")
    for case, (rows, columns, dtype) in enumerate(CASES):
        wide = torch.full((rows, columns + 8), 7.0, dtype=dtype)  # rows with a gap between them
        x = wide[:, :columns]
        x.copy_(part(case, group.rank))
        exchange.all_reduce(x)
        same = torch.equal(x, expected(case, group.size)) and bool((wide[:, columns:] == 7).all())
        print(f"case {case} rank {group.rank}: {'same bits' if same else 'DIFFERS'}", flush=True)
    exchange.close()
    group.close()


if __name__ == "__main__":
    main()
