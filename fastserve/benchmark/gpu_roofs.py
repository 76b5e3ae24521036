"""What the GPU at hand reaches at most, measured: memory by a copy, tensor cores by cuBLAS, PCIe and NVLink by copies.

A measured share counts against these; gpu_theory has what the makers say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastserve.benchmark.gpu_theory import Gpu
from fastserve.benchmark.gpu_timer import Clock, Run

ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Sizes:
    memory_bytes: int = 2 << 30  # many times any L2
    host_bytes: int = 256 << 20
    link_bytes: int = 256 << 20
    matmul_width: int = 8192


def measure_roofs(device: torch.device, clock: Clock, sizes: Sizes = Sizes()) -> Gpu:
    """The best of several rounds each; the link is infinite where there is one GPU."""

    def best(run: Run) -> float:
        run()
        return min(clock.seconds(run) for _ in range(ROUNDS))

    def copying(size: int, to: torch.device) -> float:
        source = torch.zeros(size, dtype=torch.uint8, device=device)
        pinned = to.type == "cpu" and device.type == "cuda"
        target = torch.zeros(size, dtype=torch.uint8, device=to, pin_memory=pinned)
        return best(lambda: target.copy_(source, non_blocking=True))

    width = sizes.matmul_width
    a, b = (torch.randn(width, width, dtype=torch.bfloat16, device=device) for _ in range(2))
    link_gb_s = math.inf
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        other = torch.device("cuda", (device.index + 1) % torch.cuda.device_count())
        link_gb_s = sizes.link_bytes / copying(sizes.link_bytes, other) / 1e9
    return Gpu(
        "measured",
        memory_tb_s=sizes.memory_bytes / copying(sizes.memory_bytes // 2, device) / 1e12,
        bf16_tflop_s=2.0 * width**3 / best(lambda: a @ b) / 1e12,
        link_gb_s=link_gb_s,
        host_gb_s=sizes.host_bytes / copying(sizes.host_bytes, torch.device("cpu")) / 1e9,
    )
