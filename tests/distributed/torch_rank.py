"""What a rank of test_process_group.py runs: torch_rank.py BACKEND BEHAVIOUR...; prints what the test compares."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastserve.distributed  # registers the backend

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
)
RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def digest(*tensors: Tensor) -> str:
    data = b"".join(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(data).hexdigest()[:16]


def values(dtype: torch.dtype, count: int, rank: int = RANK) -> Tensor:
    """Small whole numbers: their sums are exact in every dtype, in any order."""
    generator = torch.Generator().manual_seed(1000 * rank + count)
    return torch.randint(0, 4, (count,), generator=generator).to(dtype)


def collectives() -> None:
    for dtype in DTYPES:
        for count in (1, 1000, 300_001):
            results = []
            for op in (dist.ReduceOp.SUM, dist.ReduceOp.PRODUCT, dist.ReduceOp.MIN, dist.ReduceOp.MAX):
                results.append(values(dtype, count))
                dist.all_reduce(results[-1], op=op)
            results.append(values(dtype, count))
            dist.broadcast(results[-1], src=SIZE - 1)
            gathered = [torch.empty(count, dtype=dtype) for _ in range(SIZE)]
            dist.all_gather(gathered, values(dtype, count))
            results += gathered
            whole = torch.empty(count * SIZE, dtype=dtype)
            dist.all_gather_into_tensor(whole, values(dtype, count))
            results.append(whole)
            reduced = values(dtype, count)
            dist.reduce(reduced, dst=0)
            if RANK == 0:
                results.append(reduced)
            at_root = [torch.empty(count, dtype=dtype) for _ in range(SIZE)] if RANK == 0 else None
            dist.gather(values(dtype, count), at_root, dst=0)
            results += at_root or []
            part = torch.empty(count, dtype=dtype)
            dist.scatter(
                part, [values(dtype, count, 10 + r) for r in range(SIZE)] if RANK == 0 else None, src=0
            )
            results.append(part)
            print(dtype, count, digest(*results))


def strided_and_async() -> None:
    matrix = torch.arange(24.0).reshape(4, 6).t()
    works = [dist.all_reduce(matrix, async_op=True), dist.all_reduce(matrix, async_op=True)]
    for work in works:
        work.wait()
        assert work.is_completed()
    assert not matrix.is_contiguous()
    assert torch.equal(matrix, SIZE * SIZE * torch.arange(24.0).reshape(4, 6).t())
    flag = torch.tensor([RANK == 0, False, True])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    assert flag.tolist() == [True, False, True]
    print("ok")


def beyond_gloo() -> None:
    """What gloo lacks, against a sum that is made by hand."""
    average = torch.full((5000,), float(RANK + 1))
    dist.all_reduce(average, op=dist.ReduceOp.AVG)
    assert (average == (SIZE + 1) / 2).all()
    out = torch.empty(100)
    dist.reduce_scatter_tensor(out, torch.arange(100.0 * SIZE) + RANK)
    expected = (torch.arange(100.0 * SIZE) * SIZE + SIZE * (SIZE - 1) / 2).chunk(SIZE)[RANK]
    assert torch.equal(out, expected)
    parts = list((torch.arange(100.0 * SIZE) + RANK).chunk(SIZE))
    dist.reduce_scatter(out, parts)
    assert torch.equal(out, expected)
    crossed = [torch.empty(r + 1) for r in range(SIZE)]
    dist.all_to_all(crossed, [torch.full((RANK + 1,), float(10 * RANK + r)) for r in range(SIZE)])
    assert all((row == 10 * r + RANK).all() for r, row in enumerate(crossed))
    single = torch.empty(2 * SIZE)
    dist.all_to_all_single(single, torch.arange(2.0 * SIZE) + 100 * RANK)
    assert torch.equal(single.view(SIZE, 2)[:, 0], torch.arange(SIZE) * 100.0 + 2 * RANK)
    with dist._coalescing_manager():
        first, second = torch.ones(10), torch.ones(20)
        dist.all_reduce(first)
        dist.all_reduce(second)
    assert first.sum() == 10 * SIZE
    assert second.sum() == 20 * SIZE
    for wrong in (torch.zeros(2, dtype=torch.float8_e5m2), torch.zeros(2, 2).to_sparse()):
        try:
            dist.all_reduce(wrong)
        except (ValueError, RuntimeError) as error:
            print(str(error).split(";", maxsplit=1)[0])
    print("ok")


def messages() -> None:
    peer = (RANK + 1) % SIZE
    before = (RANK - 1) % SIZE
    # Both send first, more than any buffer holds.
    data, got = torch.full((1_000_000,), float(RANK)), torch.empty(1_000_000)
    works = [dist.isend(data, peer), dist.irecv(got, before)]
    dist.barrier()
    for work in works:
        work.wait()
    assert (got == before).all()
    if RANK == 0:
        dist.send(torch.tensor([1.0]), 1, tag=5)
        dist.send(torch.tensor([2.0]), 1, tag=6)
    if RANK == 1:
        second, first = torch.zeros(1), torch.zeros(1)
        dist.recv(second, 0, tag=6)
        dist.recv(first, 0, tag=5)
        assert (first.item(), second.item()) == (1.0, 2.0)
    if RANK == 0:  # from whoever comes first, by tag; a longer one with another tag is kept for later
        sources = []
        for _ in range(SIZE - 1):
            word = torch.zeros(3)
            sources.append(dist.recv(word, tag=8))
            assert word.tolist() == [sources[-1]] * 3
        assert sorted(sources) == list(range(1, SIZE))
        for source in range(1, SIZE):
            long = torch.zeros(100_000)
            assert dist.recv(long, source, tag=7) == source
            assert long.tolist() == [source] * 100_000
    else:
        dist.send(torch.full((100_000,), float(RANK)), 0, tag=7)
        dist.send(torch.full((3,), float(RANK)), 0, tag=8)
    ops = [dist.P2POp(dist.isend, data[:7], peer), dist.P2POp(dist.irecv, got[:7], before)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    print("ok")


def objects_and_groups() -> None:
    everything: list[object] = [None] * SIZE
    dist.all_gather_object(everything, {"rank": RANK, "text": "x" * (100 * RANK)})
    assert everything == [{"rank": r, "text": "x" * (100 * r)} for r in range(SIZE)]
    told = [f"from {RANK}"]
    dist.broadcast_object_list(told, src=1)
    assert told == ["from 1"]
    for ranks in ([0, 1], [1, 2], [0, 2], [2]):
        group = dist.new_group(ranks)
        if RANK in ranks:
            tensor = torch.tensor([float(RANK + 1)])
            dist.all_reduce(tensor, group=group)
            assert tensor.item() == sum(rank + 1 for rank in ranks)
    dist.barrier()
    print("ok")


def functional() -> None:
    import torch.distributed._functional_collectives as functional_collectives

    group = dist.group.WORLD
    x = torch.arange(6.0) + RANK
    print(digest(functional_collectives.all_reduce(x, "sum", group).wait()))
    print(digest(functional_collectives.all_gather_tensor(x, 0, group).wait()))
    print(digest(functional_collectives.broadcast(x, 1, group).wait()))
    compiled = torch.compile(
        lambda t: functional_collectives.all_reduce(t * 2, "sum", group) + 1, backend="eager"
    )
    print(digest(compiled(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(20, 64), nn.Linear(64, 5), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.relu(self.first(x)))
        return result


def train(model: nn.Module, steps: int = 10) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(100 + RANK)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(torch.randn(16, 20)), torch.randn(16, 5))
        loss.backward()
        optimizer.step()


def ddp() -> None:
    for options in (
        {"find_unused_parameters": True},
        {"find_unused_parameters": True, "gradient_as_bucket_view": True},
        {"static_graph": True},
        {"find_unused_parameters": True, "bucket_cap_mb": 0.001},
    ):
        torch.manual_seed(RANK)  # DDP broadcasts rank 0's
        model = DistributedDataParallel(Net(), **options)
        train(model)
        print(digest(*model.parameters()))


def fsdp() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
    fully_shard(model[0])
    fully_shard(model)
    train(model)
    full = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    print(digest(*full))


def lose_rank_1() -> None:
    model = DistributedDataParallel(nn.Linear(20, 5))
    try:
        for step in range(1000):
            loss = model(torch.randn(4, 20)).sum()
            if step == 3 and RANK == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            start = time.monotonic()
            loss.backward()
    except RuntimeError as error:
        print(time.monotonic() - start < 1.0, str(error).replace("\n", " "))


def time_out() -> None:
    dist.barrier()
    if RANK == 0:
        try:
            dist.all_reduce(torch.zeros(4))
        except dist.DistBackendError as error:
            print(error)
    sys.stdin.read()


def main() -> None:
    assert fastserve.distributed.__doc__
    torch.set_num_threads(1)
    timeout_s = float(os.environ.get("TIMEOUT_S", "60"))
    dist.init_process_group(sys.argv[1], timeout=timedelta(seconds=timeout_s))
    assert dist.get_backend() == sys.argv[1]
    for behaviour in sys.argv[2:]:
        globals()[behaviour]()
    sys.stdout.flush()
    if (
        sys.argv[1] != "fastserve"
    ):  # the oracle: gloo's threads now and then outlive it, which ends in std::terminate
        dist.barrier()
        os._exit(0)
    dist.destroy_process_group()


main()
