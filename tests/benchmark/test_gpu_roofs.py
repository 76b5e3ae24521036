from __future__ import annotations

import math

import pytest
import torch

from fastserve.benchmark.gpu_roofs import Sizes, measure_roofs
from fastserve.benchmark.gpu_theory import GPUS, H200, gpu_named

from .fake_gpu import FakeClock


def test_roofs_are_sizes_over_times() -> None:
    sizes = Sizes(memory_bytes=4000, host_bytes=1000, link_bytes=500, matmul_width=10)
    found = measure_roofs(torch.device("cpu"), FakeClock(per_run_s=1e-9), sizes)
    assert found.memory_tb_s == pytest.approx(4.0)  # read and written
    assert found.bf16_tflop_s == pytest.approx(2.0)
    assert found.host_gb_s == pytest.approx(1000.0)
    assert math.isinf(found.link_gb_s)


def test_the_makers_figures_are_found_by_the_drivers_name() -> None:
    assert gpu_named("NVIDIA H200") is H200
    assert gpu_named("NVIDIA H100 80GB HBM3") is GPUS[1]
    assert gpu_named("NVIDIA H100 PCIe") is None  # other memory, other clocks
    assert gpu_named("NVIDIA GH200 480GB") is None
