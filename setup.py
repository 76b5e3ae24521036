"""Builds the native extension with CMake and ninja; everything else is in pyproject.toml.

`kernels/` is installed as `fastserve.kernels`: the top-level name `kernels` belongs to another project.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SUPPORTED_MACHINES = ("x86_64", "aarch64")


def require_supported_platform() -> None:
    """One line instead of a compiler's complaints where the engine cannot run."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in SUPPORTED_MACHINES:
        sys.exit(f"fastserve runs on Linux on x86-64 and aarch64; this is {system} on {machine}")


def forget_moved_build(build_dir: Path) -> None:
    """CMake refuses a build tree of a checkout that lay elsewhere."""
    cache = build_dir / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
        shutil.rmtree(build_dir)


class CMakeExtension(Extension):
    def __init__(self, name: str, *, optional: bool = False) -> None:
        super().__init__(name, sources=[], optional=optional)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        if ext.optional:  # what CMake finds the compiler for is built along with the others
            return
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # An editable install keeps its objects in the checkout: the next one and the native tests reuse them.
        build_dir = ROOT / "build" / "native" if self.editable_mode else Path(self.build_temp).resolve()
        forget_moved_build(build_dir)
        build_dir.mkdir(parents=True, exist_ok=True)
        cmake = shutil.which("cmake") or "cmake"
        configure = [
            cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(build_dir),
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja') or 'ninja'}",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('FASTSERVE_BUILD_TYPE', 'Release')}",
            "-DFASTSERVE_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFASTSERVE_OUTPUT_DIR={target.parent}",
            f"-DFASTSERVE_VERSION={self.distribution.get_version()}",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build_dir), "--target", "extensions"], check=True)


require_supported_platform()
setup(
    packages=[*find_packages(include=["fastserve", "fastserve.*"]), "fastserve.kernels"],
    package_dir={"fastserve.kernels": "kernels"},
    package_data={"fastserve": ["py.typed", "_C.pyi", "_cuda.pyi"], "fastserve.server": ["web/*"]},
    ext_modules=[CMakeExtension("fastserve._C"), CMakeExtension("fastserve._cuda", optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
