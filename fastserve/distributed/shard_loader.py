"""One rank's weights: its slices of the mapped file, packed into the layout that the kernels stream."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastserve import _C
from fastserve.errors import WeightFileError
from fastserve.models import names
from fastserve.models.config import ModelConfig
from fastserve.models.llama import LayerWeights, LlamaWeights, Shard
from fastserve.program.values import EmbeddingTable, FusedWeight


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows and columns of one tensor of the file (half-open)."""

    tensor: str
    rows: tuple[int, int]
    columns: tuple[int, int]


def check_shapes(file: _C.GgufFile, config: ModelConfig) -> None:
    """Raises WeightFileError where a tensor is missing or has another shape than the configuration says."""
    for name, shape in names.expected_shapes(config):
        tensor = file.tensors.get(name)
        if tensor is None:
            raise WeightFileError(f"{file.path}: tensor {name} is missing")
        if tuple(tensor.shape) != shape:
            raise WeightFileError(
                f"{file.path}: tensor {name} must have shape {shape}, got {tuple(tensor.shape)}"
            )


class ShardLoader:
    """Packs a shard on `num_threads` threads; `load` returns when everything is packed."""

    def __init__(self, file: _C.GgufFile, config: ModelConfig, shard: Shard, *, num_threads: int) -> None:
        check_shapes(file, config)
        self._file = file
        self._config = config
        self._shard = shard
        self._num_threads = num_threads
        self._tasks: list[Callable[[], None]] = []

    def load(self) -> LlamaWeights[FusedWeight, list[float]]:
        config = self._config
        layers = tuple(self._layer(layer) for layer in range(config.num_layers))
        logits = names.LOGITS if names.LOGITS in self._file.tensors else names.EMBEDDING
        weights = LlamaWeights(
            embedding=self._embedding(),
            layers=layers,
            norm=self._vector(names.NORM),
            logits=self._fused([Slice(logits, self._shard.vocab, (0, config.hidden))]),
            inv_freq=config.inv_freq(),
        )
        with ThreadPoolExecutor(self._num_threads) as pool:
            for done in [pool.submit(task) for task in self._tasks]:
                done.result()
        return weights

    def _layer(self, layer: int) -> LayerWeights[FusedWeight, list[float]]:
        config, shard = self._config, self._shard
        head_dim, whole = config.head_dim, (0, config.hidden)
        heads = (shard.heads[0] * head_dim, shard.heads[1] * head_dim)
        kv_heads = (shard.kv_heads[0] * head_dim, shard.kv_heads[1] * head_dim)

        def tensor(name: str) -> str:
            return names.layer_tensor(layer, name)

        return LayerWeights(
            attention_norm=self._vector(tensor("attn_norm")),
            qkv=self._fused(
                [
                    Slice(tensor("attn_q"), heads, whole),
                    Slice(tensor("attn_k"), kv_heads, whole),
                    Slice(tensor("attn_v"), kv_heads, whole),
                ]
            ),
            attention_out=self._fused([Slice(tensor("attn_output"), whole, heads)]),
            mlp_norm=self._vector(tensor("ffn_norm")),
            gate_up=self._fused(
                [
                    Slice(tensor("ffn_gate"), shard.intermediate, whole),
                    Slice(tensor("ffn_up"), shard.intermediate, whole),
                ]
            ),
            down=self._fused([Slice(tensor("ffn_down"), whole, shard.intermediate)]),
        )

    def _packed_type(self, name: str) -> str:
        self._file.data_address(name)  # a type that is not supported is refused here, with those that are
        return _C.packed_type(self._file.tensors[name].type)

    def _fused(self, slices: list[Slice]) -> FusedWeight:
        """Packs runs of slices of one type side by side."""
        runs: list[list[Slice]] = []
        for piece in slices:
            if runs and self._packed_type(runs[-1][0].tensor) == self._packed_type(piece.tensor):
                runs[-1].append(piece)
            else:
                runs.append([piece])
        return FusedWeight(tuple(self._pack(run) for run in runs))

    def _pack(self, run: list[Slice]) -> _C.PackedWeight:
        n = sum(piece.rows[1] - piece.rows[0] for piece in run)
        k = run[0].columns[1] - run[0].columns[0]
        packed = _C.PackedWeight(self._packed_type(run[0].tensor), n, k)

        def pack() -> None:
            at = 0
            for piece in run:
                tensor = self._file.tensors[piece.tensor]
                address = self._file.data_address(piece.tensor)
                packed.pack(tensor.type, address, tensor.shape[1], rows=piece.rows, cols=piece.columns, at=at)
                at += piece.rows[1] - piece.rows[0]

        self._tasks.append(pack)
        return packed

    def _vector(self, name: str) -> list[float]:
        tensor = self._file.tensors[name]
        if tensor.type_name != "F32":
            raise WeightFileError(
                f"{self._file.path}: tensor {name} must have type F32, got {tensor.type_name}"
            )
        return list(array("f", self._file.read(name)))

    def _embedding(self) -> EmbeddingTable:
        tensor = self._file.tensors[names.EMBEDDING]
        self._packed_type(names.EMBEDDING)
        return EmbeddingTable(
            address=self._file.data_address(names.EMBEDDING),
            gguf_type=tensor.type,
            row_bytes=tensor.nbytes // tensor.shape[0],
            width=tensor.shape[1],
        )


def packed_bytes(weights: LlamaWeights[FusedWeight, list[float]]) -> int:
    """Bytes of packed weights that a rank holds; norms and the mapped embedding are not among them."""
    return sum(part.nbytes for weight in fused_weights(weights) for part in weight.parts)


def fused_weights(weights: LlamaWeights[FusedWeight, list[float]]) -> list[FusedWeight]:
    fused = [weights.logits]
    for layer in weights.layers:
        fused += [layer.qkv, layer.attention_out, layer.gate_up, layer.down]
    return fused
