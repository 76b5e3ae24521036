"""What a rank of test_group.py runs: group_rank.py BEHAVIOUR; prints what the test looks at."""

from __future__ import annotations

import array
import hashlib
import math
import os
import signal
import sys
import types

from fastserve.distributed.group import Group, init_group
from fastserve.errors import FastServeError


class Tensor:
    """As much of a contiguous fp32 torch tensor as a group uses; torch takes seconds to import."""

    dtype = "torch.float32"
    device = types.SimpleNamespace(type="cpu")
    is_cpu = True

    def __init__(self, values: list[float], shape: tuple[int, ...]) -> None:
        self.values = array.array("f", values)
        self.shape = shape

    def numel(self) -> int:
        return len(self.values)

    def data_ptr(self) -> int:
        return self.values.buffer_info()[0]

    def is_contiguous(self) -> bool:
        return True


def reduce_shapes(group: Group) -> None:
    # 5,000 floats do not fit 4096 bytes, 600 rows go in many slices.
    for shape in ((), (7,), (3, 100), (600, 16), (5000,), (2, 3, 8), (0, 4)):
        count = 1
        for extent in shape:
            count *= extent
        tensor = Tensor([group.rank + 1.0 + i for i in range(count)], shape)
        group.all_reduce(tensor)
        ranks = group.size * (group.size + 1) // 2
        assert list(tensor.values) == [ranks + group.size * i for i in range(count)]
    group.barrier()


def reduce_order_matters(group: Group) -> None:
    tensor = Tensor([(1e8, 1.0, -1e8)[(group.rank + i) % 3] + i / 3 for i in range(512)], (1, 512))
    group.all_reduce(tensor)
    print(tensor.values.tobytes().hex())


def reduce_large(group: Group) -> None:
    """Of one part and of many, in levels and not; prints what must be alike everywhere."""
    digest = hashlib.sha256()
    for count in (1, 1000, 16_384, 100_003, 700_001):
        values = [(1e8, 1.0, -1e8)[(group.rank + i) % 3] + i / 3 for i in range(count)]
        tensor = Tensor(values, (count,))
        group.all_reduce(tensor)
        digest.update(tensor.values.tobytes())
        whole = Tensor([float((group.rank + i) % 5) for i in range(count)], (count,))
        group.all_reduce(whole)
        expected = [float(sum((rank + i) % 5 for rank in range(group.size))) for i in range(count)]
        assert list(whole.values) == expected
        group.barrier()
    print(f"sums {digest.hexdigest()}")


def reduce_in_8_bits(group: Group) -> None:
    """Within the error that init_group states, and not exact."""
    count = 70_001
    tensor = Tensor([math.sin(i + group.rank) for i in range(count)], (count,))
    group.all_reduce(tensor)
    exact = [sum(math.sin(i + rank) for rank in range(group.size)) for i in range(count)]
    largest = max(abs(a - b) for a, b in zip(tensor.values, exact, strict=True))
    assert 1e-4 < largest < (group.size + group.size) / 254, largest
    print(f"near {hashlib.sha256(tensor.values.tobytes()).hexdigest()}")


def wait_and_tell(group: Group) -> None:
    group.barrier()
    print("waiting", flush=True)
    wait_for_ever(group)


def sum_large_and_tell(group: Group) -> None:
    """Sums that go in levels, in many parts: a rank that dies dies in the middle of one."""
    tensor = Tensor([1.0] * 1_000_003, (1_000_003,))
    group.barrier()
    print("waiting", flush=True)
    tell_loss(group, tensor)


def refuse(group: Group) -> None:
    tensor = Tensor([1.0], (1,))
    tensor.dtype = "torch.float8_e5m2"
    for wrong in (tensor, [1.0], array.array("f", [1.0])):
        try:
            group.all_reduce(wrong)  # type: ignore[arg-type]
        except ValueError as error:
            print(error)


def lose_rank_1(group: Group) -> None:
    group.barrier()
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_ever(group)


def leave_early(group: Group) -> None:
    group.barrier()
    if group.rank == 1:
        return
    wait_for_ever(group)


def interrupt_rank_0(group: Group) -> None:
    group.barrier()
    if group.rank == 0:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        group.barrier()  # rank 1 never comes
    sys.stdin.read()


def wait_for_ever(group: Group) -> None:
    tell_loss(group, Tensor([1.0] * 64, (1, 64)))


def tell_loss(group: Group, tensor: Tensor) -> None:
    try:
        while True:
            group.all_reduce(tensor)
    except FastServeError as error:
        print(f"{type(error).__name__}: {error}")


def main() -> None:
    try:
        timeout_s, silence_s = (float(os.environ.get(name, "30")) for name in ("TIMEOUT_S", "SILENCE_S"))
        wire_bits = int(os.environ.get("WIRE_BITS", "32"))
        with init_group(
            symmetric_bytes=4096, timeout_s=timeout_s, silence_s=silence_s, wire_bits=wire_bits
        ) as group:
            assert (group.rank, group.size) == (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
            globals()[sys.argv[1]](group)
    except KeyboardInterrupt:
        print("KeyboardInterrupt")
    except FastServeError as error:
        print(f"{type(error).__name__}: {error}")
    assert "torch" not in sys.modules


main()
