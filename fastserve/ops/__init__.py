"""The ops of a forward pass on torch tensors; this module is the `ops` that runs them at once.

`fastserve.ops.reference` has the same names in plain torch. `python -m fastserve.ops` prints the table.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastserve.ops needs torch: pip install fastserve[torch]") from error

from fastserve.ops import reference
from fastserve.ops.add_rms_norm import add_rms_norm
from fastserve.ops.all_reduce import all_reduce
from fastserve.ops.all_reduce_add_rms_norm import all_reduce_add_rms_norm
from fastserve.ops.embed import embed
from fastserve.ops.file_rows import FileRows
from fastserve.ops.kv_cache import KvCache, KvIndex
from fastserve.ops.matmul import matmul
from fastserve.ops.matmul_all_reduce import matmul_all_reduce
from fastserve.ops.matmul_all_reduce_add_rms_norm import matmul_all_reduce_add_rms_norm
from fastserve.ops.packed_weight import PackedWeight, pack, unpack
from fastserve.ops.paged_attention import paged_attention
from fastserve.ops.rms_norm import rms_norm
from fastserve.ops.rotary import rotary
from fastserve.ops.sample import Sampled, sample
from fastserve.ops.select_rows import select_rows
from fastserve.ops.silu_mul import silu_mul
from fastserve.ops.split import split
from fastserve.ops.store_kv import store_kv
from fastserve.ops.swap import swap

__all__ = [
    "FileRows",
    "KvCache",
    "KvIndex",
    "PackedWeight",
    "Sampled",
    "add_rms_norm",
    "all_reduce",
    "all_reduce_add_rms_norm",
    "embed",
    "matmul",
    "matmul_all_reduce",
    "matmul_all_reduce_add_rms_norm",
    "pack",
    "paged_attention",
    "reference",
    "rms_norm",
    "rotary",
    "sample",
    "select_rows",
    "silu_mul",
    "split",
    "store_kv",
    "swap",
    "unpack",
]
