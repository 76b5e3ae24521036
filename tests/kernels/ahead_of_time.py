"""Compiles Triton kernels for GPUs that are not here, and reads what came out.

The tests' own process interprets kernels, which Triton decides once for a process: compiling is done in another.
Run as a script, it reads cases from stdin and writes what it made of them to stdout, both as JSON.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel, specialised as a launch would specialise it.

    signature: argument name -> Triton type ("*bf16", "i32", "fp32", "tensordesc<bf16[128,64]>")
    constants: the values of constexpr arguments
    aligned:   arguments known to be multiples of 16, as Triton finds out for itself at a launch
    """

    module: str  # fastserve.kernels.<op>
    kernel: str
    architecture: int
    signature: dict[str, str]
    constants: dict[str, object]
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True, slots=True)
class Compiled:
    registers: int  # of a thread
    local_bytes: int  # of a thread: spills and indexed arrays
    shared_bytes: int  # of a block
    ptx: str = field(repr=False)
    sass: str = field(repr=False)


def compile_cases(cases: Sequence[Case]) -> list[Compiled]:
    """All of them, shared out among a process for each core. Raises AssertionError with the compiler's words."""
    num_processes = min(len(os.sched_getaffinity(0)), len(cases))
    with ThreadPoolExecutor(num_processes) as pool:
        parts = list(pool.map(_compile_apart, [cases[i::num_processes] for i in range(num_processes)]))
    return [parts[i % num_processes][i // num_processes] for i in range(len(cases))]


def _compile_apart(cases: Sequence[Case]) -> list[Compiled]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as cache:
        result = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps([dataclasses.asdict(case) for case in cases]),
            capture_output=True,
            text=True,
            check=False,
            env=environment | {"TRITON_CACHE_DIR": cache},
        )
    assert result.returncode == 0, result.stderr[-4000:]
    return [Compiled(**compiled) for compiled in json.loads(result.stdout)]


def _compile(case: Case) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(case.module), case.kernel)
    signature = {name: case.signature.get(name, "constexpr") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in case.constants.items()}
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    binary = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", case.architecture, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        sass = _cuobjdump("-sass", file.name)
    registers, stack, local = (_field(usage, name) for name in ("REG", "STACK", "LOCAL"))
    return Compiled(registers, stack + local, binary.metadata.shared, binary.asm["ptx"], sass)


def _cuobjdump(option: str, path: str) -> str:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def _field(usage: str, name: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    assert found is not None, usage
    return int(found[1])


def main() -> None:
    cases = [Case(**case) for case in json.load(sys.stdin)]
    json.dump([dataclasses.asdict(_compile(case)) for case in cases], sys.stdout)


if __name__ == "__main__":
    main()
