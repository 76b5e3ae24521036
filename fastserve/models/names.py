"""What the tensors of a llama-family GGUF file are called, and the shapes they must have."""

from __future__ import annotations

from collections.abc import Iterator

from fastserve.models.config import ModelConfig

EMBEDDING = "token_embd.weight"
NORM = "output_norm.weight"
LOGITS = "output.weight"  # absent where the embedding serves


def layer_tensor(layer: int, name: str) -> str:
    return f"blk.{layer}.{name}.weight"


def expected_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor that the forward pass reads, with its shape [rows, columns] or [D]."""
    hidden, q = config.hidden, config.num_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    yield EMBEDDING, (config.vocab_size, hidden)
    yield NORM, (hidden,)
    for layer in range(config.num_layers):
        yield layer_tensor(layer, "attn_norm"), (hidden,)
        yield layer_tensor(layer, "ffn_norm"), (hidden,)
        yield layer_tensor(layer, "attn_q"), (q, hidden)
        yield layer_tensor(layer, "attn_k"), (kv, hidden)
        yield layer_tensor(layer, "attn_v"), (kv, hidden)
        yield layer_tensor(layer, "attn_output"), (hidden, q)
        yield layer_tensor(layer, "ffn_gate"), (config.intermediate, hidden)
        yield layer_tensor(layer, "ffn_up"), (config.intermediate, hidden)
        yield layer_tensor(layer, "ffn_down"), (hidden, config.intermediate)
