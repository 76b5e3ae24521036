"""How much memory this process may still take: the machine's, or less where a control group says so."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def cgroup_memory_left(cgroup: Path = CGROUP) -> int | None:
    """Bytes that the control group may still take; None where it sets no limit."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)


def available_bytes() -> int:
    left = cgroup_memory_left()
    machine = int(psutil.virtual_memory().available)
    return machine if left is None else min(left, machine)
