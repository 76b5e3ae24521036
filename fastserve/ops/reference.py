"""Every op in plain torch, under the names and signatures that a model's forward uses: every test's oracle.

Weights are plain tensors [N, K] (dequantised), products are fp32, and nothing native is called.
"""

from fastserve.ops.add_rms_norm import reference as add_rms_norm
from fastserve.ops.all_reduce import reference as all_reduce
from fastserve.ops.all_reduce_add_rms_norm import reference as all_reduce_add_rms_norm
from fastserve.ops.embed import reference as embed
from fastserve.ops.matmul import reference as matmul
from fastserve.ops.matmul_all_reduce import reference as matmul_all_reduce
from fastserve.ops.matmul_all_reduce_add_rms_norm import reference as matmul_all_reduce_add_rms_norm
from fastserve.ops.paged_attention import reference as paged_attention
from fastserve.ops.rms_norm import reference as rms_norm
from fastserve.ops.rotary import reference as rotary
from fastserve.ops.sample import reference as sample
from fastserve.ops.select_rows import reference as select_rows
from fastserve.ops.silu_mul import reference as silu_mul
from fastserve.ops.split import reference as split
from fastserve.ops.store_kv import reference as store_kv
from fastserve.ops.swap import reference as swap

__all__ = [
    "add_rms_norm",
    "all_reduce",
    "all_reduce_add_rms_norm",
    "embed",
    "matmul",
    "matmul_all_reduce",
    "matmul_all_reduce_add_rms_norm",
    "paged_attention",
    "rms_norm",
    "rotary",
    "sample",
    "select_rows",
    "silu_mul",
    "split",
    "store_kv",
    "swap",
]
