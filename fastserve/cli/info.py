"""`fastserve info`: what is installed here, what this machine has, and why something is missing."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import fastserve
from fastserve.cli.install import InstallError, require_native
from fastserve.cli.settings import Settings

GIB = 2**30
EXTRAS = {"torch": "torch", "triton": "gpu"}  # package: extra of ours that brings it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(settings: Settings) -> int:
    lines = [("version", f"{fastserve.__version__} ({Path(fastserve.__file__).parent})")]
    lines += [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    lines += [*native(), ("cores", cores()), ("memory", memory()), ("gpu", gpu())]
    lines += [("cuda kernels", cuda_kernels())]
    lines += [(package, package_version(package)) for package in EXTRAS]
    for name, text in lines:
        print(f"{name:14}{text}")
    return 0


def native() -> list[tuple[str, str]]:
    """The ISA in use and the others; where the extension is missing, what to do about it."""
    try:
        module = require_native()
    except InstallError as error:
        return [("cpu kernels", f"not usable: {error}")]
    try:
        chosen = f"isa {module.isa()}"
    except (RuntimeError, ValueError) as error:
        chosen = f"not usable: {error}"
    return [("cpu kernels", chosen), *(_isa(*built) for built in module.isas())]


def _isa(name: str, supported: bool, needs: str) -> tuple[str, str]:
    return f"  {name}", "built, usable" if supported else f"built; this CPU lacks it (needs {needs})"


def cores() -> str:
    from fastserve.distributed.cores import cgroup_cpus, usable_cores

    quota = cgroup_cpus()
    limit = "no quota" if quota is None else f"a quota of {quota:g}"
    allowed = len(os.sched_getaffinity(0))
    used = len(usable_cores())
    return f"{used} used ({allowed} allowed by affinity, {limit}, {os.cpu_count()} in the machine)"


def memory() -> str:
    import psutil

    from fastserve.worker.memory import available_bytes, cgroup_memory_left

    limited = "" if cgroup_memory_left() is None else " (the control group sets a limit)"
    total = psutil.virtual_memory().total
    return f"{available_bytes() / GIB:.1f} GiB available of {total / GIB:.1f} GiB{limited}"


def gpu() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        nodes = sorted(Path("/dev").glob("nvidia[0-9]*"))
        return (
            f"{len(nodes)} (no nvidia-smi to name them)" if nodes else "none (no nvidia-smi, no /dev/nvidia*)"
        )
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi fails: {error}"
    return "; ".join(found.strip().splitlines()) or "none"


def cuda_kernels() -> str:
    if find_spec("fastserve._cuda") is None:
        return "not built: there was no nvcc when fastserve was installed"
    try:
        import_module("fastserve._cuda")
    except ImportError as error:
        return f"built, but not usable: {error}"
    return "built"


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed (pip install 'fastserve[{EXTRAS[package]}]')"
