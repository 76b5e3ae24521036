"""Runs a script under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fastserve import _C

TIMEOUT_S = 180  # several interpreters import torch, on cores shared with other tests


def run_ranks(script: str | Path, num_ranks: int, *args: str) -> list[str]:
    """The lines that the ranks printed, sorted; fails with their complaints if one of them failed.

    script: of this folder, unless it is a whole path
    """
    with tempfile.TemporaryDirectory() as logs:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(num_ranks)),
            *("--log-dir", logs, "--redirects", "1"),  # a file for each rank: their lines must not mix
        ]
        # The fastserve that this process runs, also where that is a checkout and nothing is installed.
        path = [str(Path(_C.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [*command, str(Path(__file__).parent / script), *args],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
        )
        printed = [log.read_text() for log in Path(logs).rglob("stdout.log")]
    assert done.returncode == 0, done.stderr + "".join(printed)
    return sorted(line for text in printed for line in text.splitlines())
