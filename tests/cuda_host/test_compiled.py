"""What nvcc made of the CUDA kernels, for each GPU: registers, no spills, and the instructions that must be there."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")

# Registers a thread may take: what leaves 512 threads of an exchange, or a tile's 256 (64), room on a multiprocessor.
MAX_REGISTERS = {
    "all_reduce_one_shot": 128,
    "all_reduce_two_shot": 128,
    "all_reduce_ring": 64,
    "all_reduce_add_rms_norm": 128,
    "add_rms_norm": 64,
    "matmul": 232,
    "matmul_all_reduce_ring": 232,
    "matmul_all_reduce_one_shot": 160,
    "matmul_all_reduce_two_shot": 255,
    "swap_blocks": 64,
}
VECTORS = (r"LDG\.E\.128", r"STG\.E\.128")
PUSHES = (*VECTORS, r"LDG?\.E\.STRONG\.SYS", r"STG?\.E\.STRONG\.SYS")
TENSOR = (r"HMMA\.16816\.F32", r"LDSM\.16\.M88\.4", r"LDGSTS\.E\.BYPASS\.128", r"STG\.E\.128")
INSTRUCTIONS = {
    "all_reduce_one_shot": PUSHES,
    "all_reduce_two_shot": PUSHES,
    "all_reduce_ring": PUSHES,
    "all_reduce_add_rms_norm": PUSHES,
    "add_rms_norm": VECTORS,
    "matmul": TENSOR,
    "matmul_all_reduce_ring": (*TENSOR, *PUSHES),
    "matmul_all_reduce_one_shot": (*TENSOR, *PUSHES),
    "matmul_all_reduce_two_shot": (*TENSOR, *PUSHES),
    "swap_blocks": VECTORS,
}


@dataclass(frozen=True, slots=True)
class Kernel:
    name: str  # without its template arguments
    full_name: str
    architecture: str
    registers: int
    local_bytes: int
    code: str


@pytest.fixture(scope="module")
def module() -> Path:
    spec = importlib.util.find_spec("fastserve._cuda")
    if spec is None or spec.origin is None:
        if "FASTSERVE_REQUIRE_NVCC" in os.environ:
            pytest.fail("fastserve was built without its CUDA ops")
        pytest.skip("fastserve was built without its CUDA ops: no nvcc was found")
    return Path(spec.origin)


@pytest.fixture(scope="module")
def kernels(module: Path) -> list[Kernel]:
    usage = {
        (architecture, mangled): text for architecture, mangled, text in _functions(module, "-res-usage")
    }
    found = list(_functions(module, "-sass"))
    names = subprocess.run(
        ["c++filt"],
        input="\n".join(mangled for _, mangled, _ in found),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [
        Kernel(
            name=re.sub(r"<.*", "", name.removeprefix("void ").split("(")[0]).split("::")[-1],
            full_name=name,
            architecture=architecture,
            registers=_number(usage[architecture, mangled], "REG"),
            local_bytes=_number(usage[architecture, mangled], "STACK")
            + _number(usage[architecture, mangled], "LOCAL"),
            code=code,
        )
        for (architecture, mangled, code), name in zip(found, names, strict=True)
    ]


def _functions(module: Path, option: str) -> Iterator[tuple[str, str, str]]:
    """(architecture, mangled name, text) of each kernel."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    told = subprocess.run([tool, option, module], capture_output=True, text=True, check=True).stdout
    for part in told.split("\narch = ")[1:]:
        architecture = part.split("\n", 1)[0]
        for function in re.split(r"\n\s*Function\s*:?\s*", part)[1:]:
            mangled = re.match(r"\w+", function)
            assert mangled is not None, function[:100]
            yield architecture, mangled[0], function


def _number(usage: str, name: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    assert found is not None, usage
    return int(found[1])


def test_every_kernel_is_there_for_every_architecture(kernels: list[Kernel]) -> None:
    for architecture in ARCHITECTURES:
        assert {kernel.name for kernel in kernels if kernel.architecture == architecture} == set(INSTRUCTIONS)


def test_no_kernel_spills_or_takes_too_many_registers(kernels: list[Kernel]) -> None:
    bad = [
        (kernel.full_name, kernel.architecture, kernel.registers, kernel.local_bytes)
        for kernel in kernels
        if kernel.local_bytes > 0 or kernel.registers > MAX_REGISTERS[kernel.name]
    ]
    assert bad == []


def test_kernels_are_made_of_the_right_instructions(kernels: list[Kernel]) -> None:
    missing = [
        (kernel.full_name, kernel.architecture, pattern)
        for kernel in kernels
        for pattern in INSTRUCTIONS[kernel.name]
        if re.search(pattern, kernel.code) is None
    ]
    assert missing == []
    local = [kernel.full_name for kernel in kernels if re.search(r"\b(LDL|STL)\b", kernel.code)]
    assert local == []


def test_the_module_says_that_there_is_no_driver(module: Path) -> None:
    cuda = importlib.import_module("fastserve._cuda")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"^CUDA: .*driver"):
            cuda.device_count()
        with pytest.raises(RuntimeError, match=r"^CUDA: .*driver"):
            cuda.ExchangeBuffer(0, 2)
    with pytest.raises(ValueError, match=r"size must be in \[2, 8\]"):
        cuda.ExchangeBuffer(0, 9)
