"""What processes hold besides their KV cache: packed weights once over all ranks, and little else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KV_BYTES = 16 << 20  # of each rank
WEIGHTS_FACTOR = 1.2
# Interpreter, libraries, tokenizer, buffers: measured 60 MiB where one process is all.
PROCESS_BYTES = 64 << 20

HOLDINGS = f"""
import json, sys
import psutil
from fastserve import LLM, SamplingParams

with LLM(sys.argv[1], devices=int(sys.argv[2]), kv_cache_bytes={KV_BYTES}, max_model_len=512) as llm:
    llm.generate([[1, 2, 3] * 30], SamplingParams(temperature=0, max_tokens=8))
    own = psutil.Process()
    shares = [one.memory_full_info().pss for one in (own, *own.children(recursive=True))]
    print(json.dumps([shares, llm._engine.executor.packed_bytes]))
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_weights_are_in_memory_once_and_a_process_holds_little_else(devices: int, smollm2_path: Path) -> None:
    command = [sys.executable, "-c", HOLDINGS, str(smollm2_path), str(devices)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    shares, packed = json.loads(printed.splitlines()[-1])
    print(f"proportional MiB {[share >> 20 for share in shares]}, packed {[size >> 20 for size in packed]}")
    allowed = WEIGHTS_FACTOR * sum(packed) + devices * KV_BYTES + len(shares) * PROCESS_BYTES
    assert sum(shares) <= allowed
