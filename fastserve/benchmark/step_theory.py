"""What one step of a whole model must read and compute on each GPU of a group that shares the work evenly.

Weights are read once, the keys and values of every earlier position once, and those of the step's rows are written.
What GPUs exchange is not counted: gpu_theory has it op by op.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastserve.benchmark.gpu_theory import BF16, Work
from fastserve.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class StepTheory:
    config: ModelConfig
    weight_bytes: float  # packed, of the GPU that holds most
    num_gpus: int

    def step(self, op: str, shape: str, *, num_streams: int, rows: int, context: float) -> Work:
        """Each stream brings `rows` tokens behind `context` others, and draws one."""
        model = self.config
        keys = num_streams * (rows * context + rows * (rows + 1) / 2)  # that rows attend to
        attention = 4.0 * model.num_layers * model.num_heads * model.head_dim * keys
        products = 2.0 * num_streams * (rows * self._layer_weights + model.vocab_size * model.hidden)
        kv_bytes = num_streams * (context + rows) * self._position_bytes
        return Work(
            op,
            shape,
            memory_bytes=self.weight_bytes + kv_bytes / self.num_gpus,
            flops=(products + attention) / self.num_gpus,
        )

    @property
    def _layer_weights(self) -> int:
        """Of all layers together."""
        model = self.config
        heads = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
        return model.num_layers * model.hidden * (heads + 3 * model.intermediate)

    @property
    def _position_bytes(self) -> int:
        model = self.config
        return BF16 * 2 * model.num_layers * model.num_kv_heads * model.head_dim
