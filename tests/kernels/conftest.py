"""Kernels run in Triton's interpreter here, on CPU tensors; it is chosen when a kernel is defined."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
