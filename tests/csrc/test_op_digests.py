"""Every op gives the same bits on every ISA: those of this machine, and of aarch64 CPUs that qemu emulates."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

EMULATED_ISAS = {
    "cortex-a53": ["portable"],
    "cortex-a76": ["neon", "portable"],
    # The architecture's own pointer authentication costs an emulator more than all else.
    "max,pauth-impdef=on": ["neon_bf16", "neon", "portable"],
}


@dataclass(frozen=True, slots=True)
class Digests:
    chosen: str  # ISA
    of: dict[str, dict[str, str]]  # by ISA, then by op and case


def run(command: list[str], isa: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FASTSERVE_ISA": isa}  # empty: the CPU's widest
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environment)


def digests(command: list[str]) -> Digests:
    done = run(command)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    first, *lines = done.stdout.splitlines()
    found = Digests(first.removeprefix("chosen "), {})
    for line in lines:
        isa, op, case, digest = line.split()
        found.of.setdefault(isa, {})[f"{op} {case}"] = digest
    return found


def emulated(cpu: str, build: Path) -> list[str]:
    return ["qemu-aarch64", "-cpu", cpu, str(build / "op_digests")]


@pytest.fixture(scope="module")
def here(native_build: Path) -> Digests:
    return digests([str(native_build / "op_digests")])


@pytest.mark.timeout(600)
def test_all_isas_of_this_machine_give_the_same_bits(here: Digests) -> None:
    for isa, of_isa in here.of.items():
        assert of_isa == here.of["portable"], isa


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cpu", EMULATED_ISAS)
def test_an_aarch64_cpu_takes_the_widest_isa_and_all_give_these_bits(
    cpu: str, here: Digests, aarch64_build: Path
) -> None:
    there = digests(emulated(cpu, aarch64_build))
    assert there.chosen == EMULATED_ISAS[cpu][0]
    assert list(there.of) == EMULATED_ISAS[cpu]
    for isa, of_isa in there.of.items():
        assert of_isa == here.of["portable"], isa


@pytest.mark.timeout(600)
def test_an_isa_that_the_cpu_lacks_is_refused_by_what_it_needs(aarch64_build: Path) -> None:
    done = run(emulated("cortex-a53", aarch64_build), isa="neon")
    assert done.returncode == 1
    assert done.stderr == "FASTSERVE_ISA=neon: this CPU lacks it (needs Armv8.2 with asimddp)\n"
