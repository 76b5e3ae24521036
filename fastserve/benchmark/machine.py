"""What a figure was taken on, and with which code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastserve import _C
from fastserve.benchmark.checkout import commit
from fastserve.distributed.cores import usable_cores

CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    num_cores: int  # that this process may use
    isa: str
    commit: str

    def __str__(self) -> str:
        return f"{self.cpu} x{self.num_cores}"


def describe_machine() -> Machine:
    return Machine(cpu_name(), len(usable_cores()), _C.isa(), commit())


def cpu_name(cpu_info: Path = CPU_INFO) -> str:
    """As the kernel tells it; with family and model, for hypervisors hide names."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return "unknown CPU"
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", "unknown CPU")
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']} model {fields.get('model', '?')})"
    return name
