"""Run by torchrun in every rank: the collective ops on the rank's device against their references, over gloo.

Argument: cuda, or cpu. Where there are fewer GPUs than ranks, ranks share one: the sums are then slow, and right.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import fastserve.ops
from fastserve.benchmark import collective_calls
from fastserve.benchmark.op_calls import Call, Setting
from fastserve.distributed.group import Group, init_group
from fastserve.ops import PackedWeight, reference, unpack
from fastserve.ops.backend import VARIABLE
from fastserve.ops.packed_weight import WeightType
from tests.gpu.op_table import DTYPES, QUANTISED, backends_of
from tests.gpu.outcome import check, check_captured, outcome
from tests.gpu.place import Place

LIMIT_S = 100  # a kernel that waits for ever ends with its process
SIZES = ((1, 1), (3, 17), (130, 576))
# On GPUs also what goes in two shots, and around the ring.
LARGE_SIZES = ((16, 4096), (512, 4096), (1024, 8192))
MATMULS = ((1, 32, 64), (33, 100, 96), (150, 520, 160))  # rows, N, K of a rank: one-shot, and the ring


class OnHost:
    """The references on copies in the host's memory, which gloo can gather."""

    def __getattr__(self, name: str) -> Any:
        def run(*args: Any) -> Tensor | None:
            x = args[0]
            copies = [_on_host(arg, x.dtype) for arg in args]
            out = getattr(reference, name)(*copies)
            for arg, copy in zip(args, copies, strict=True):
                if isinstance(arg, Tensor):
                    arg.copy_(copy)
            return None if out is None else out.to(x.device)

        return run


def _on_host(arg: Any, dtype: torch.dtype) -> Any:
    if isinstance(arg, PackedWeight):
        return unpack(arg).to(dtype).cpu()
    return arg.cpu().clone() if isinstance(arg, Tensor) else arg


def calls(group: Group, setting: Setting) -> Iterator[tuple[str, Call]]:
    """Names are those that tests.gpu.op_table knows backends of."""
    on_gpu = setting.device.type == "cuda"
    for rows, d in (*SIZES, *(LARGE_SIZES if on_gpu else ())):
        yield "all_reduce", collective_calls.all_reduce(setting, group, rows=rows, d=d)
    for rows, d in (*SIZES, *(LARGE_SIZES[:2] if on_gpu else ())):
        yield (
            "all_reduce_add_rms_norm",
            collective_calls.all_reduce_add_rms_norm(setting, group, rows=rows, d=d),
        )
    types: tuple[WeightType, ...] = (setting.plain_type, *(QUANTISED if on_gpu else ()))
    for type in types:
        for rows, n, k in MATMULS:
            sizes = {"rows": rows, "n": n, "k": k}
            yield (
                f"matmul_all_reduce {type}",
                collective_calls.matmul_all_reduce(setting, group, type, **sizes),
            )
            call = collective_calls.matmul_all_reduce_add_rms_norm(setting, group, type, **sizes)
            yield f"matmul_all_reduce_add_rms_norm {type}", call


def assert_same_bits_on_all_ranks(tensors: list[Tensor], group: Group) -> None:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    assert len(set(group.exchange.all_gather(digest.digest()))) == 1


def check_calls(group: Group, place: Place) -> int:
    setting = Setting.on(place.device, place.dtype, seed=group.rank)
    num_checked = 0
    for name, call in calls(group, setting):
        for backend in backends_of(name, place.dtype) if place.device == "cuda" else [None]:
            os.environ.pop(VARIABLE, None)
            if backend is not None:
                os.environ[VARIABLE] = backend
            found = outcome(call, fastserve.ops, place)
            check(found, outcome(call, OnHost(), place))
            assert_same_bits_on_all_ranks(found, group)
            num_checked += 1
    os.environ.pop(VARIABLE, None)
    return num_checked


def check_graphs(group: Group, place: Place) -> None:
    setting = Setting.on(place.device, place.dtype, seed=group.rank)
    type, sizes = setting.plain_type, {"rows": 33, "n": 100, "k": 96}
    for call in (
        collective_calls.all_reduce(setting, group, rows=130, d=576),
        collective_calls.all_reduce_add_rms_norm(setting, group, rows=5, d=576),
        collective_calls.matmul_all_reduce(setting, group, type, **sizes),
        collective_calls.matmul_all_reduce_add_rms_norm(setting, group, type, **sizes),
    ):
        check_captured(call, OnHost(), place)


def main(device: str) -> None:
    signal.alarm(LIMIT_S)
    dist.init_process_group("gloo")
    group = init_group()
    if device == "cuda":
        torch.cuda.set_device(group.rank % torch.cuda.device_count())
    num_checked = 0
    for dtype in DTYPES if device == "cuda" else (torch.float32,):
        place = Place(device, None, dtype)
        num_checked += check_calls(group, place)
        check_graphs(group, place)
    dist.destroy_process_group()
    print(f"rank {group.rank} of {group.size}: {num_checked} calls equal their references")


if __name__ == "__main__":
    main(sys.argv[1])
