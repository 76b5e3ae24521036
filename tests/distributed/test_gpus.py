"""What `devices` names where it names GPUs."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from fastserve import errors
from fastserve.distributed import gpus
from fastserve.distributed.devices import find_devices
from fastserve.distributed.gpus import Gpu, find_gpus, list_gpus, names_gpus


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "list_gpus", lambda: tuple(Gpu(i, "H100", 80 << 30) for i in range(3)))


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ("cuda", [0, 1, 2]),
        ("cuda:1", [1]),
        ("cuda:2,0", [2, 0]),
        (" cuda:0, cuda:2 ", [0, 2]),
    ],
)
def test_gpus_are_named_by_number(wanted: str, numbers: list[int]) -> None:
    assert names_gpus(wanted)
    assert [gpu.index for gpu in find_gpus(wanted)] == numbers
    devices = find_devices(wanted, None)
    assert [device.name for device in devices] == [f"cuda:{number}" for number in numbers]
    assert all(device.cores for device in devices)  # they load its weights


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("cuda:3", "devices may name GPUs 0 to 2 here, got 3 in 'cuda:3'"),
        ("cuda:1,1", "devices may name a GPU once, got 1 twice in 'cuda:1,1'"),
        ("cuda:", "devices must be cuda for all GPUs, or cuda:0,1 .* got 'cuda:'"),
        ("cuda:0,cpu:1", "devices must be cuda for all GPUs"),
        ("cuda:-1", "devices must be cuda for all GPUs"),
        ("cpu:0,cuda:1", "devices must be a number, cpu:CORES .* or cuda for all GPUs"),
        ("gpu:0", "or cuda for all GPUs"),
    ],
)
def test_what_names_no_gpus_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_devices(wanted, None)


def with_cuda(monkeypatch: pytest.MonkeyPatch, cuda: object) -> None:
    monkeypatch.setitem(sys.modules, "fastserve._cuda", cuda)
    monkeypatch.setattr("fastserve._cuda", cuda, raising=False)


def test_gpus_are_what_cuda_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    infos = {0: ("H100", 80 << 30, 90), 1: ("A100", 40 << 30, 80)}
    with_cuda(monkeypatch, SimpleNamespace(device_count=lambda: 2, device_info=infos.__getitem__))
    assert list_gpus() == (Gpu(0, "H100", 80 << 30), Gpu(1, "A100", 40 << 30))


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cuda(monkeypatch, SimpleNamespace(device_count=lambda: 0))
    with pytest.raises(errors.BackendError, match="this machine has no GPU that CUDA can use"):
        find_devices("cuda", None)


def test_a_machine_without_a_driver_says_so_in_cudas_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> int:
        raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")

    with_cuda(monkeypatch, SimpleNamespace(device_count=no_driver))
    with pytest.raises(errors.BackendError, match="no GPU can be used here: CUDA driver version"):
        find_devices("cuda", None)


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name)
    )
    with pytest.raises(errors.BackendError, match=r"GPUs need triton: pip install fastserve\[gpu\]"):
        list_gpus()
