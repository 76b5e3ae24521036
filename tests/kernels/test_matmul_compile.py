"""What the launchers of matmul and matmul_all_reduce launch at a model's shapes, compiled for GPUs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from fastserve.kernels import matmul as matmul_module
from fastserve.kernels import matmul_all_reduce as all_reduce_module
from fastserve.kernels.matmul import Epilogue, WeightType, matmul
from fastserve.kernels.matmul_all_reduce import Peers, all_reduce, matmul_all_reduce
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .ahead_of_time import ARCHITECTURES, Case, Compiled, compile_cases

TRITON_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
}
MMA = {80: "HMMA.16816", 90: "HGMMA", 100: "UTCHMMA"}
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # that a block may have
D, F = 4096, 14336


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def multiply(  # noqa: PLR0917 (what varies most comes first)
    m: int,
    n: int,
    type: WeightType = "plain",
    epilogue: Epilogue = "none",
    dtype: torch.dtype = torch.bfloat16,
    shift: int = 0,
) -> Callable[[int], None]:
    """A launch for an architecture; K is D. shift: elements between x and an aligned address."""
    x = empty(m, D + 16, dtype=dtype)[:, shift : D + shift]
    if type == "plain":
        w = empty(n, D, dtype=dtype)
    else:
        w = empty(n, D, dtype=torch.int8) if type == "q8" else empty(n, D // 2, dtype=torch.uint8)
    scales = None if type == "plain" else empty(n, D // 32, dtype=torch.float16)
    out = empty(m, n // 2 if epilogue == "silu_mul" else n, dtype=dtype)
    return lambda architecture: matmul(
        x, w, out=out, weight_type=type, scales=scales, minima=scales if type == "q4m" else None,
        epilogue=epilogue, architecture=architecture,
    )  # fmt: skip


def peers_for(m: int) -> Peers:
    """One of four ranks, with room for M rows in one call."""
    areas = empty(4, dtype=torch.int64)
    return Peers(rank=1, areas=areas, area_bytes=max(33 << 20, 4 * 2 * 4 * m * D), epoch=1 << 40)


def multiply_and_sum(m: int) -> Callable[[int], None]:
    return lambda architecture: matmul_all_reduce(
        empty(m, D), empty(D, D), peers_for(m), out=empty(m, D), architecture=architecture
    )


def sum_alone(m: int) -> Callable[[int], None]:
    return lambda architecture: all_reduce(empty(m, D), peers_for(m), architecture=architecture)


@dataclass(frozen=True, slots=True)
class Expected:
    launch: Callable[[int], None]
    max_registers: int  # of a thread
    architectures: tuple[int, ...] = ARCHITECTURES
    kernel: str = "multiply_tile"
    shares_sm: bool = False  # two blocks fit


MATMULS = {
    "decode": Expected(multiply(1, D), 64, shares_sm=True),
    "prefill": Expected(multiply(4096, D), 176),
    "gated decode q4m": Expected(multiply(16, 2 * F, "q4m", "silu_mul"), 96, (80, 100), shares_sm=True),
    "gated prefill": Expected(multiply(4096, 2 * F, epilogue="silu_mul"), 128, (80,)),
    "prefill q4": Expected(multiply(4096, D, "q4"), 224, (80, 90)),
    "decode q8": Expected(multiply(16, D, "q8"), 64, (90,), shares_sm=True),
    "fp32": Expected(multiply(4096, D, dtype=torch.float32), 96, (80,)),
    "unaligned": Expected(multiply(16, D, shift=1), 168, (90,)),
}
SUMS = {
    "push of decode": Expected(multiply_and_sum(16), 64, kernel="compute_and_push", shares_sm=True),
    "sum of decode": Expected(multiply_and_sum(16), 48, kernel="wait_and_reduce"),
    "push of prefill": Expected(multiply_and_sum(4096), 160, (90,), "compute_and_push"),
    "sum of prefill": Expected(multiply_and_sum(4096), 80, (90,), "wait_and_reduce"),
    "push alone": Expected(sum_alone(16), 64, (90,), "push"),
}
EXPECTED = MATMULS | SUMS
PRODUCTS = ("multiply_tile", "compute_and_push")
KERNELS = (*PRODUCTS, "push", "wait_and_reduce")
Results = dict[tuple[str, int], Compiled]


def keys_of(*names: str, architectures: tuple[int, ...] = ARCHITECTURES) -> list[tuple[str, int]]:
    return [(name, one) for name in names for one in EXPECTED[name].architectures if one in architectures]


class Recorder:
    """Stands where a kernel was, and keeps what it is launched with."""

    def __init__(self) -> None:
        self.arguments: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *arguments: object, **options: object) -> None:
        self.arguments, self.options = arguments, options


def case_of(name: str, architecture: int, patch: pytest.MonkeyPatch) -> Case:
    """The launch, specialised as Triton would: aligned pointers, integers that are 1 or multiples of 16."""
    expected = EXPECTED[name]
    module: ModuleType = matmul_module if name in MATMULS else all_reduce_module
    interpreted = getattr(module, expected.kernel)
    unspecialised = interpreted.kwargs["do_not_specialize"] or ()
    recorders = {kernel: Recorder() for kernel in KERNELS}
    with patch.context() as context:
        for kernel, recorder in recorders.items():
            if hasattr(module, kernel):
                context.setattr(module, kernel, recorder)
        expected.launch(architecture)
    launched = recorders[expected.kernel]
    parameters = inspect.signature(interpreted.fn).parameters.values()
    types: dict[str, str] = {}
    constants: dict[str, object] = {}
    aligned: list[str] = []
    for parameter, value in zip(parameters, launched.arguments, strict=True):
        specialised = isinstance(value, int) and parameter.name not in unspecialised
        if parameter.annotation == "tl.constexpr" or value is None or (specialised and value == 1):
            constants[parameter.name] = value
        elif isinstance(value, TensorDescriptor):
            block = ",".join(str(size) for size in value.block_shape)
            types[parameter.name] = f"tensordesc<{TRITON_TYPES[value.base.dtype]}[{block}]>"
        elif isinstance(value, Tensor):
            types[parameter.name] = "*" + TRITON_TYPES[value.dtype]
            aligned += [parameter.name] if value.storage_offset() * value.element_size() % 16 == 0 else []
        else:
            types[parameter.name] = "i32" if value < 2**31 else "i64"
            aligned += [parameter.name] if specialised and value % 16 == 0 else []
    options = launched.options
    return Case(
        module.__name__, expected.kernel, architecture, types, constants, tuple(aligned),
        options["num_warps"], options.get("num_stages", 3),
    )  # fmt: skip


def compile_all(keys: list[tuple[str, int]]) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # what enable_fp_fusion=True is at a launch
        # meta tensors have no address: an aligned one is 0 and the shifted one its offset
        patch.setattr(Tensor, "data_ptr", lambda tensor: tensor.storage_offset() * tensor.element_size())
        cases = [case_of(name, architecture, patch) for name, architecture in keys]
    return dict(zip(keys, compile_cases(cases), strict=True))


@pytest.fixture(scope="module")
def matmuls() -> Results:
    return compile_all(keys_of(*MATMULS))


@pytest.fixture(scope="module")
def sums() -> Results:
    return compile_all(keys_of(*SUMS))


def check_resources(compiled: Results, name: str, architecture: int) -> None:
    result = compiled[name, architecture]
    assert result.local_bytes == 0
    assert result.registers <= EXPECTED[name].max_registers
    assert result.shared_bytes <= SHARED_BYTES[architecture] // (2 if EXPECTED[name].shares_sm else 1)


@pytest.mark.parametrize(("name", "architecture"), keys_of(*MATMULS))
def test_no_matmul_spills(matmuls: Results, name: str, architecture: int) -> None:
    check_resources(matmuls, name, architecture)


@pytest.mark.parametrize(("name", "architecture"), keys_of(*SUMS))
def test_no_sum_spills(sums: Results, name: str, architecture: int) -> None:
    check_resources(sums, name, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_has_one_kind_of_mma(matmuls: Results, sums: Results, architecture: int) -> None:
    results = matmuls | sums
    for (name, built_for), result in results.items():
        if built_for != architecture or name == "fp32" or EXPECTED[name].kernel not in PRODUCTS:
            continue
        found = {kind for kind in ("HMMA", "HGMMA", "UTCHMMA") if re.search(rf"\b{kind}\b", result.sass)}
        assert found == {MMA[architecture].partition(".")[0]}, name
        assert MMA[architecture] in result.sass


def test_fp32_is_not_rounded_to_tf32(matmuls: Results) -> None:
    sass = matmuls["fp32", 80].sass
    assert "FFMA" in sass
    assert "MMA.1" not in sass


@pytest.mark.parametrize(("name", "architecture"), keys_of(*MATMULS, architectures=(90, 100)))
def test_aligned_operands_come_by_descriptors(matmuls: Results, name: str, architecture: int) -> None:
    assert ("UTMALDG.2D" in matmuls[name, architecture].sass) == (name != "unaligned")


@pytest.mark.parametrize("name", ["decode", "prefill", "gated decode q4m", "gated prefill", "prefill q4"])
def test_on_sm_80_operands_come_16_bytes_at_a_time(matmuls: Results, name: str) -> None:
    sass = matmuls[name, 80].sass
    copies = set(re.findall(r"LDGSTS\S*", sass))
    # Two scales of a row of a tile are 4 bytes; a small tile's 1024 bytes of codes are 8 a thread.
    assert copies - ({"LDGSTS.E", "LDGSTS.E.64"} if "q4" in name else set()) == {"LDGSTS.E.BYPASS.128"}
    assert not re.search(r"LDG\.E", sass)


@pytest.mark.parametrize(("name", "architecture"), keys_of("gated decode q4m", "prefill q4", "decode q8"))
def test_scales_take_part_in_the_pipeline(matmuls: Results, name: str, architecture: int) -> None:
    assert "LDGSTS.E" in matmuls[name, architecture].sass
    assert not re.search(r"LDG\.E", matmuls[name, architecture].sass)


@pytest.mark.parametrize(("name", "architecture"), keys_of("prefill", "gated prefill", "prefill q4"))
def test_the_output_leaves_16_bytes_at_a_time(matmuls: Results, name: str, architecture: int) -> None:
    stores = set(re.findall(r"STG\S*", matmuls[name, architecture].sass))
    assert stores == {"STG.E.128"}


@pytest.mark.parametrize(("name", "architecture"), keys_of("push of decode", "push of prefill", "push alone"))
def test_a_flag_is_raised_behind_a_barrier_behind_the_tile(
    sums: Results, name: str, architecture: int
) -> None:
    ptx = sums[name, architecture].ptx
    # A thread of sm_80's smallest tile has 4 elements of 2 bytes.
    vectors = 2 if (name, architecture) == ("push of decode", 80) else 4
    last_push = ptx.rindex(f"st.global.v{vectors}.b32")
    barrier = ptx.index("bar.sync", last_push)
    flags = [found.start() for found in re.finditer(r"atom\.global\.sys\.release\.exch", ptx)]
    assert len(flags) == 3  # peers
    assert last_push < barrier < flags[0]


@pytest.mark.parametrize(("name", "architecture"), keys_of("sum of decode", "sum of prefill"))
def test_flag_and_epoch_are_read_by_one_thread_for_all(sums: Results, name: str, architecture: int) -> None:
    """Were threads to look for themselves, they could leave a loop with barriers at different times."""
    ptx = sums[name, architecture].ptx
    for order, count in (("acquire", 6), ("relaxed", 3)):  # per peer; the flag before the loop and in it
        reads = re.findall(rf"(@%p\d+) ld\.global\.sys\.{order}\.b32", ptx)
        assert len(reads) == count
        assert len(set(reads)) == 1
    assert "ld.volatile" not in ptx
