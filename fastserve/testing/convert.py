"""Other forms of a real model: the same weights in another type, only the first layers of it, or with a sliding window.

Needs the `gguf` package (test extra).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

KEPT_TYPES = (GGMLQuantizationType.F32,)  # norms stay as they are


def convert(
    source: Path,
    target: Path,
    type_name: str,
    *,
    num_layers: int | None = None,
    sliding_window: int | None = None,
) -> Path:
    """Writes `source` to `target` with matrices of `type_name` (F32, F16, BF16, Q8_0, Q4_0, Q4_1).

    num_layers: how many of the first layers to keep; None: all.
    sliding_window: what the file says of it, in tokens; None: nothing.
    """
    wanted = GGMLQuantizationType[type_name]
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama", use_temp_file=False)
    for field in reader.fields.values():
        _copy_field(writer, field, num_layers)
    if sliding_window is not None:
        writer.add_sliding_window(sliding_window)
    for tensor in reader.tensors:
        if num_layers is not None and _layer_of(tensor.name) >= num_layers:
            continue
        if tensor.tensor_type in KEPT_TYPES and len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        matrix = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, gguf.quants.quantize(matrix, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _layer_of(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" else -1


def _copy_field(writer: GGUFWriter, field: Any, num_layers: int | None) -> None:
    if field.name.startswith("GGUF.") or field.name == "general.architecture":
        return
    value = field.contents()
    if field.name == "llama.block_count" and num_layers is not None:
        value = num_layers
    is_array = field.types[0] == GGUFValueType.ARRAY
    sub_type = field.types[-1] if is_array else None
    writer.add_key_value(field.name, value, field.types[0], sub_type)
