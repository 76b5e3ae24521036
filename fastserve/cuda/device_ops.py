"""The op table on device tensors, for weights that may have several parts."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fastserve import ops
from fastserve.cuda.device_weights import DeviceWeight
from fastserve.ops.group import Group


class DeviceOps:
    """fastserve.ops as `forward` calls them, but for the type of a weight."""

    embed = staticmethod(ops.embed)
    rms_norm = staticmethod(ops.rms_norm)
    rotary = staticmethod(ops.rotary)
    store_kv = staticmethod(ops.store_kv)
    paged_attention = staticmethod(ops.paged_attention)
    select_rows = staticmethod(ops.select_rows)
    split = staticmethod(ops.split)

    @staticmethod
    def matmul(x: Tensor, w: DeviceWeight, *, epilogue: Literal["none", "silu_mul"] = "none") -> Tensor:
        products = [ops.matmul(x, part) for part in w.parts]
        product = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        return product if epilogue == "none" else ops.silu_mul(product)

    @staticmethod
    def matmul_all_reduce_add_rms_norm(x: Tensor, w: DeviceWeight, group: Group | None, *norm: Any) -> Tensor:
        (part,) = w.parts  # one tensor of the file
        return ops.matmul_all_reduce_add_rms_norm(x, part, group, *norm)
