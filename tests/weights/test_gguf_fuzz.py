"""A GGUF file cut, grown, bit-flipped or with smashed integers never does worse than a WeightFileError."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("gguf.cpp", "gguf_parser.cpp", "gguf_value.cpp", "mapped_file.cpp")
NUM_MUTATIONS = 10_000


def test_ten_thousand_mutations_end_in_success_or_a_weight_file_error(
    small_gguf: Path, tmp_path: Path
) -> None:
    compiler = shutil.which("g++")
    assert compiler is not None, "this test needs g++ with its sanitizers"
    fuzzer = tmp_path / "fuzz_gguf"
    build = [
        compiler, "-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
        "-I", str(ROOT / "csrc"), str(ROOT / "tests/csrc/fuzz_gguf.cpp"),
        *(str(ROOT / "csrc/weights" / source) for source in SOURCES), "-o", str(fuzzer),
    ]  # fmt: skip
    subprocess.run(build, check=True)
    run = subprocess.run(
        [fuzzer, small_gguf, str(NUM_MUTATIONS)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    counts = re.match(r"(\d+) read whole, (\d+) refused", run.stdout)
    assert counts is not None, run.stdout
    num_whole, num_refused = map(int, counts.groups())
    assert num_whole + num_refused == NUM_MUTATIONS
    # Both happen often, or the mutations would test nothing.
    assert num_whole > NUM_MUTATIONS // 20
    assert num_refused > NUM_MUTATIONS // 2
