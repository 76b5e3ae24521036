"""Which GPU a kernel is compiled for."""

from __future__ import annotations

import torch
from torch import Tensor


def architecture_of(tensor: Tensor) -> int:
    """10 * major + minor of its device's compute capability. CPU tensors are the interpreter's: sm_80."""
    if tensor.device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor
