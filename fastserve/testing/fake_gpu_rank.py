"""A rank on a fake GPU (fake_cuda.py): everything of fastserve.cuda.rank but the GPU."""

from __future__ import annotations

from functools import partial

from fastserve.cuda.rank import CudaRank
from fastserve.distributed.rank import main
from fastserve.testing.fake_cuda import FakeRuntime

if __name__ == "__main__":
    main(partial(CudaRank, runtime_of=lambda gpu: FakeRuntime()))
