"""The GPU kernels against torch's libraries and the roofs, and the engine over them: steps of bench/gpu.sh.

python bench/gpu.py ops --lines FILE                  one GPU
torchrun ... bench/gpu.py collectives --lines FILE    a process per GPU
python bench/gpu.py model --lines FILE                the engine, with one GPU and with all
"""

from __future__ import annotations

from fastserve.benchmark.gpu_command import main

main()
