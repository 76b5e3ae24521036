"""What the ops' CUDA backend hands to fastserve._cuda, told by a recorder: addresses, strides, types, the stream.

The tensors are the CPU's, laid out as for a GPU; what the kernels do with them is tested in tests/cuda_host.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import fastserve.ops
from fastserve import _C
from fastserve.ops import backend, device_call, registry, triton_peers, weight_rows
from fastserve.ops.group import handle_of
from fastserve.ops.matmul_all_reduce_add_rms_norm import MAX_SEPARATE_ROWS
from fastserve.ops.packed_weight import WeightType

STREAM = 7
F32, F16, BF16 = (_C.DATA_TYPES.index(type) for type in ("f32", "f16", "bf16"))


class Recorder:
    TRITON_AREA_BYTES = 33 << 20
    EPILOGUES = ("none", "silu", "gelu_tanh", "relu", "silu_mul")

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append((name, args))


class Buffer:
    """An exchange buffer, and the group that has it on its GPU."""

    rank, size = 1, 2
    triton_areas = (1 << 40, 3 << 40)
    epoch_address = 5 << 40

    @property
    def device_exchange(self) -> Buffer:
        return self


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setenv("FASTSERVE_BACKEND", "triton")  # lays weights and caches out by rows
    monkeypatch.setattr(device_call, "cuda_ops", lambda: recorder)
    monkeypatch.setattr(device_call, "stream_of", lambda tensor: STREAM)
    return recorder


@pytest.fixture
def buffer() -> Buffer:
    return Buffer()


def bf16(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bfloat16)


def run(name: str, *args: Any) -> Any:
    return registry.implementation(name, "cuda")(*args)


def rows(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.stride(0)


def test_matmul(cuda: Recorder) -> None:
    x, w, bias = bf16(3, 64), fastserve.ops.pack(bf16(20, 64)), torch.ones(20)
    out = run("matmul", x, w.data, w.type, w.n, w.k, bias, "relu")
    assert cuda.calls == [
        (
            "matmul",
            (*rows(x), w.data.data_ptr(), 64, *rows(out), 3, 20, 64, BF16, BF16, bias.data_ptr(), 3, STREAM),
        )
    ]


def test_rows_that_are_not_aligned_are_copied(cuda: Recorder) -> None:
    x, w = bf16(3, 101)[:, 1:], fastserve.ops.pack(bf16(20, 100))
    out = run("matmul", x, w.data, w.type, w.n, w.k, None, "none")
    ((_, args),) = cuda.calls
    assert args[0] % 16 == 0
    assert args[1] == args[3] == 104
    assert args[4:] == (*rows(out), 3, 20, 100, BF16, BF16, 0, 0, STREAM)


def test_a_quantised_weight_is_for_triton(cuda: Recorder) -> None:
    w = fastserve.ops.pack(bf16(20, 64), "q4")
    with pytest.raises(
        ValueError, match=r"type must be bf16 or f16 for the backend cuda \(triton has all\), got q4"
    ):
        run("matmul", bf16(3, 64), w.data, w.type, w.n, w.k, None, "none")


def test_all_reduce_is_in_place(cuda: Recorder, buffer: Buffer) -> None:
    x = bf16(3, 64)
    run("all_reduce", x, handle_of(buffer))
    assert cuda.calls == [("all_reduce", (buffer, *rows(x), *rows(x), 3, 64, BF16, STREAM))]


def test_alone_nothing_is_summed(cuda: Recorder) -> None:
    run("all_reduce", bf16(3, 64), 0)
    assert cuda.calls == []


def test_add_rms_norm(cuda: Recorder) -> None:
    x, residual, weight = bf16(3, 72)[:, :64], bf16(3, 64), torch.ones(64)
    out = run("add_rms_norm", x, residual, weight, 1e-5)
    args = (*rows(x), *rows(residual), weight.data_ptr(), 1e-5, *rows(out), 3, 64, BF16, STREAM)
    assert cuda.calls == [("add_rms_norm", args)]
    assert out.data_ptr() != x.data_ptr()


def test_all_reduce_add_rms_norm_takes_fp32_sums(cuda: Recorder, buffer: Buffer) -> None:
    x, residual, weight = torch.ones(3, 64), bf16(3, 64), torch.ones(64)
    out = run("all_reduce_add_rms_norm", x, handle_of(buffer), residual, weight, 1e-5)
    assert out.dtype == torch.bfloat16
    args = (buffer, *rows(x), *rows(residual), weight.data_ptr(), 1e-5, *rows(out), 3, 64, F32, BF16, STREAM)
    assert cuda.calls == [("all_reduce_add_rms_norm", args)]


def test_matmul_all_reduce_is_one_kernel(cuda: Recorder, buffer: Buffer) -> None:
    x, w = bf16(3, 64), fastserve.ops.pack(bf16(20, 64))
    out = run("matmul_all_reduce", x, w.data, w.type, w.n, w.k, handle_of(buffer))
    args = (buffer, *rows(x), w.data.data_ptr(), 64, *rows(out), 3, 20, 64, BF16, BF16, STREAM)
    assert cuda.calls == [("matmul_all_reduce", args)]


def test_the_product_of_a_quantised_weight_is_rounded_then_summed_as_in_the_fused_kernel(
    cuda: Recorder, buffer: Buffer
) -> None:
    x, w = torch.ones(3, 64, dtype=torch.float16), fastserve.ops.pack(torch.ones(20, 64), "q8")
    out = run("matmul_all_reduce", x, w.data, w.type, w.n, w.k, handle_of(buffer))
    assert cuda.calls == [("all_reduce", (buffer, *rows(out), *rows(out), 3, 20, F16, STREAM))]
    torch.testing.assert_close(out, torch.full((3, 20), 64.0, dtype=torch.float16), rtol=2e-3, atol=0)


FEW, MANY = MAX_SEPARATE_ROWS, MAX_SEPARATE_ROWS + 1


def multiply_sum_and_normalise(num_rows: int, handle: int, type: WeightType) -> tuple[Tensor, Tensor]:
    """(out, residual)"""
    x, norm_weight = torch.ones(num_rows, 64, dtype=torch.float16), torch.ones(32)
    w = fastserve.ops.pack(torch.ones(32, 64, dtype=torch.float16), type)
    residual = torch.zeros(num_rows, 32, dtype=torch.float16)
    product = (x, w.data, w.type, w.n, w.k, handle)
    return run("matmul_all_reduce_add_rms_norm", *product, residual, norm_weight, 1e-5), residual


@pytest.mark.parametrize(
    ("num_rows", "type", "calls"),
    [
        (FEW, "f16", ["matmul", "all_reduce_add_rms_norm"]),  # the product of the fused kernel
        (FEW, "q8", ["all_reduce_add_rms_norm"]),
        (MANY, "f16", ["matmul_all_reduce", "add_rms_norm"]),
        (MANY, "q8", ["all_reduce", "add_rms_norm"]),
    ],
)
def test_few_rows_take_the_norm_along_with_their_sum(
    cuda: Recorder, buffer: Buffer, num_rows: int, type: WeightType, calls: list[str]
) -> None:
    multiply_sum_and_normalise(num_rows, handle_of(buffer), type)
    assert [name for name, _ in cuda.calls] == calls


def test_the_norm_behind_a_sum_is_written_over_it(cuda: Recorder, buffer: Buffer) -> None:
    out, residual = multiply_sum_and_normalise(MANY, handle_of(buffer), "f16")
    (_, summed), (_, normed) = cuda.calls
    assert rows(out) == summed[5:7]
    assert normed[:4] == (*rows(out), *rows(residual))
    assert normed[5:] == (1e-5, *rows(out), MANY, 32, F16, STREAM)


def test_tritons_sums_go_through_an_area_of_the_exchange_buffer(
    cuda: Recorder, buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_peers, "cuda_ops", lambda: cuda)
    monkeypatch.setattr(torch, "tensor", partial(on_this_machine, torch.tensor))
    peers = triton_peers.peers_of(handle_of(buffer), torch.device("cuda", 0))
    assert peers is not None
    assert (peers.rank, peers.area_bytes, peers.epoch) == (
        1,
        Recorder.TRITON_AREA_BYTES,
        Buffer.epoch_address,
    )
    assert tuple(peers.areas.tolist()) == Buffer.triton_areas
    assert peers is triton_peers.peers_of(handle_of(buffer), torch.device("cuda", 0))


def on_this_machine(make: Any, values: Any, *, device: torch.device, **options: Any) -> Tensor:
    assert device.type == "cuda"
    return make(values, **options)


def test_swap_takes_whole_blocks(cuda: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "is_pinned", lambda self: True)
    source, target = bf16(5, 2, 16, 8), bf16(9, 2, 16, 8)
    blocks = torch.tensor([1, 0], dtype=torch.int32), torch.tensor([8, 2], dtype=torch.int32)
    run("swap", source, target, *blocks)
    args = (source.data_ptr(), target.data_ptr(), blocks[0].data_ptr(), blocks[1].data_ptr(), 2, 512, STREAM)
    assert cuda.calls == [("swap", args)]


def test_swap_does_not_take_memory_that_the_gpu_cannot_reach(cuda: Recorder) -> None:
    blocks = torch.tensor([0], dtype=torch.int32)
    with pytest.raises(ValueError, match="source must be on the GPU or in pinned memory, got cpu"):
        run("swap", bf16(2, 8), bf16(2, 8), blocks, blocks)


def test_weights_in_rows_begin_where_kernels_can_read_16_bytes() -> None:
    for weight_type in ("f32", "f16", "bf16", "q8", "q4", "q4m"):
        data = weight_rows.empty(weight_type, 3, 32, torch.device("cpu"))
        for part in weight_rows.parts(data, weight_type, 3, 32):
            assert part is None or (part.data_ptr() - data.data_ptr()) % 16 == 0


def test_the_module_is_the_one_that_was_found() -> None:
    assert backend.cuda_ops() is backend.cuda_ops()


class Mover:
    """What GPUs that do not reach each other's memory have: it sums by itself. This one adds 1."""

    rank, size = 0, 2

    @property
    def device_exchange(self) -> Mover:
        return self

    def all_reduce(self, x: Tensor) -> None:
        x += 1


def test_sums_of_gpus_that_do_not_reach_each_other_are_not_our_kernels(
    cuda: Recorder,
) -> None:
    """Products and norms are Triton's, which the interpreter runs."""
    mover = Mover()
    handle = handle_of(mover)  # type: ignore[arg-type]
    x, weight = torch.randn(3, 32), torch.rand(64)
    w = fastserve.ops.pack(torch.randn(64, 32), "f32")
    product = fastserve.ops.matmul(x, w)
    torch.testing.assert_close(run("matmul_all_reduce", x, w.data, w.type, w.n, w.k, handle), product + 1)

    residual = torch.randn(3, 64)
    expected_residual = residual + product + 1
    normed = fastserve.ops.rms_norm(expected_residual, weight, 1e-5)
    for op, arguments in (
        ("matmul_all_reduce_add_rms_norm", (x, w.data, w.type, w.n, w.k, handle)),
        ("all_reduce_add_rms_norm", (product, handle)),
    ):
        updated = residual.clone()
        torch.testing.assert_close(run(op, *arguments, updated, weight, 1e-5), normed)
        torch.testing.assert_close(updated, expected_residual)
    summed = product.clone()
    run("all_reduce", summed, handle)
    torch.testing.assert_close(summed, product + 1)
    assert cuda.calls == []


@pytest.mark.parametrize(("group", "backend"), [(Buffer(), "cuda"), (Mover(), "triton"), (None, "triton")])
def test_whose_norm_a_row_gets_does_not_depend_on_how_many_rows_are_beside_it(
    cuda: Recorder, monkeypatch: pytest.MonkeyPatch, group: Any, backend: str
) -> None:
    by_triton: list[str] = []
    monkeypatch.setattr(
        "fastserve.kernels.add_rms_norm.add_rms_norm", lambda *args, **options: by_triton.append("triton")
    )
    for num_rows in (1, FEW, MANY):
        multiply_sum_and_normalise(num_rows, 0 if group is None else handle_of(group), "f16")
    by_cuda = ["cuda" for name, _ in cuda.calls if name.endswith("add_rms_norm")]
    assert by_cuda + by_triton == [backend] * 3
