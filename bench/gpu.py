"""The GPU kernels against torch's libraries and the roofs: steps of bench/gpu.sh.

python bench/gpu.py ops --lines FILE                  one GPU
torchrun ... bench/gpu.py collectives --lines FILE    a process per GPU
"""

from __future__ import annotations

from fastserve.benchmark.gpu_command import main

main()
