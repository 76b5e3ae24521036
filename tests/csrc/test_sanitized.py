"""The rings under ThreadSanitizer (ranks are threads then), and under AddressSanitizer with UBSan."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("test_ring", "test_collectives")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_rings_are_clean(sanitizer: str) -> None:
    where = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    cmake, ninja = (shutil.which(name, path=where) or name for name in ("cmake", "ninja"))
    build = ROOT / "build" / f"sanitized-{sanitizer.split(',', maxsplit=1)[0]}"
    options = ["-DFASTSERVE_PYTHON=OFF", "-DFASTSERVE_PORTABLE=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    options += [f"-DFASTSERVE_SANITIZE={sanitizer}", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure = [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *options]
    for command in (configure, [cmake, "--build", str(build), "--target", *TESTS]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for name in TESTS:
        done = subprocess.run([str(build / name)], capture_output=True, text=True, check=False, timeout=400)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        assert "WARNING: ThreadSanitizer" not in done.stderr
