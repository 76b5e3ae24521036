"""Runs a script of this folder under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fastserve import _C

TIMEOUT_S = 180  # several interpreters import torch, on cores shared with other tests


def run_ranks(script: str, num_ranks: int) -> list[str]:
    """The lines that the ranks printed, sorted; fails with their complaints if one of them failed."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(num_ranks),
    ]
    # The fastserve that this process runs, also where that is a checkout and nothing is installed.
    path = [str(Path(_C.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Buffered, a rank's output is written in one piece at its end; otherwise lines of two ranks may mix.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [*command, str(Path(__file__).with_name(script))],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(done.stdout.splitlines())
