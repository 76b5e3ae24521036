"""Decides, before anything is loaded, how a model will run: plan, limits, and how many KV blocks there are."""

from __future__ import annotations

from pathlib import Path

from fastserve import _C
from fastserve.config import EngineConfig
from fastserve.distributed.rank_program import OpenModel, RankSettings, kv_block_bytes, open_model
from fastserve.distributed.shard_plan import ShardPlan
from fastserve.errors import CapacityError
from fastserve.models.config import ModelConfig
from fastserve.step import MAX_DRAFTS
from fastserve.worker.division import Division, divide
from fastserve.worker.executor import ExecutorConfig
from fastserve.worker.gpu_sizing import blocks_that_fit
from fastserve.worker.memory import available_bytes
from fastserve.worker.step_codec import mailbox_capacity

KV_MEMORY_SHARE = 0.25  # of what is free: weights, activations and everybody else need the rest
F32_TYPE = 0  # GGUF's id
CODES_TOGETHER = 4  # of an int8 key (csrc/ops.h)


def check_isa() -> None:
    """Raises ValueError where FASTSERVE_ISA names an ISA that is unknown or that this CPU lacks."""
    try:
        _C.isa()
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def choose_kv_type(config: EngineConfig, model: OpenModel, division: Division) -> str:
    """ "auto" keeps the precision of the weights: fp32 where all of them are, else bf16.

    Raises ValueError where devices or model cannot have the type that was asked for.
    """
    if config.kv_dtype == "int8":
        if division.gpus:
            raise ValueError("kv_dtype int8 is for CPUs: GPUs keep f32 or bf16")
        head_dim = model.config.head_dim
        if head_dim % CODES_TOGETHER:
            raise ValueError(
                f"kv_dtype int8 needs a head dim in multiples of {CODES_TOGETHER}, the model's is {head_dim}: "
                "it can be f32 or bf16"
            )
    if config.kv_dtype != "auto":
        return config.kv_dtype
    return "f32" if all(tensor.type == F32_TYPE for tensor in model.file.tensors.values()) else "bf16"


def choose_max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    if config.max_model_len is None:
        return model.context_length
    if config.max_model_len > model.context_length:
        raise ValueError(
            f"max_model_len must be at most the model's context of {model.context_length} tokens, "
            f"got {config.max_model_len}"
        )
    return config.max_model_len


def group_block_bytes(model: OpenModel, plan: ShardPlan, kv_type: str) -> int:
    """Bytes of one KV block over all layers and ranks."""
    return sum(kv_block_bytes(model.config, shard.num_kv_heads, kv_type) for shard in plan.shards)


def choose_num_blocks(
    config: EngineConfig, model: OpenModel, division: Division, *, max_model_len: int, kv_type: str
) -> int:
    """KV blocks that fit the memory given, no more than all slots can use.

    Raises CapacityError with the numbers where not even one request of full length fits.
    """
    plan = division.plan
    block_bytes = group_block_bytes(model, plan, kv_type)
    if config.kv_cache_bytes is not None:
        num_fitting = config.kv_cache_bytes // block_bytes
    elif division.gpus:
        max_samples = choose_max_samples(config, division)
        num_bytes = (
            step_bytes(model.config, plan.num_ranks, config.max_num_tokens, max_samples) // plan.num_ranks
        )
        num_fitting = blocks_that_fit(model, plan, division.gpus, step_bytes=num_bytes, kv_type=kv_type)
    else:  # all ranks share this host
        num_fitting = int(available_bytes() * KV_MEMORY_SHARE) // block_bytes
    blocks_per_request = -(-max_model_len // int(_C.BLOCK_SIZE))
    if num_fitting < blocks_per_request:
        given = config.kv_cache_bytes or num_fitting * block_bytes
        raise CapacityError(
            f"one request of {max_model_len} tokens needs {blocks_per_request * block_bytes / 2**20:.0f} MiB of KV "
            f"cache, and {given / 2**20:.0f} MiB are given; lower max_model_len or raise kv_cache_bytes"
        )
    return min(num_fitting, blocks_per_request * config.max_num_seqs)


def describe_kv(config: EngineConfig, model: OpenModel, division: Division) -> str:
    """A line for people: what a token's keys and values take, and how many tokens there is room for.

    Raises ValueError or CapacityError.
    """
    kv_type = choose_kv_type(config, model, division)
    max_model_len = choose_max_model_len(config, model.config)
    num_blocks = choose_num_blocks(config, model, division, max_model_len=max_model_len, kv_type=kv_type)
    block_bytes, block_size = group_block_bytes(model, division.plan, kv_type), int(_C.BLOCK_SIZE)
    return (
        f"KV cache: {kv_type}, {block_bytes / block_size / 1024:.1f} KiB a token, "
        f"{num_blocks * block_size} tokens in {num_blocks * block_bytes / 2**20:.0f} MiB"
    )


def step_bytes(model: ModelConfig, num_ranks: int, max_tokens: int, max_samples: int) -> int:
    """About what the largest step takes over all ranks: activations, their rounded copies, logits, exchange."""
    whole_rows = 3 * num_ranks * model.hidden  # residual, hidden, merged: every rank has all of them
    shared_rows = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim + 3 * model.intermediate
    exchanged_rows = 2 * num_ranks * model.hidden if num_ranks > 1 else 0
    rounded_bytes = 3 * (num_ranks * model.hidden + model.intermediate)
    row_bytes = 4 * (whole_rows + shared_rows + exchanged_rows) + rounded_bytes
    return max_tokens * row_bytes + max_samples * 4 * model.vocab_size


def check_memory(model: OpenModel, plan: ShardPlan, settings: RankSettings) -> None:
    """Raises CapacityError with the numbers where weights, KV cache and steps do not fit what is free on this host."""
    parts = {
        "weights": sum(
            tensor.nbytes for tensor in model.file.tensors.values()
        ),  # packed, about as in the file
        "KV cache": settings.num_blocks * group_block_bytes(model, plan, settings.kv_type),
        f"steps of {settings.max_tokens} tokens": step_bytes(
            model.config, plan.num_ranks, settings.max_tokens, settings.max_samples
        ),
    }
    needed, free = sum(parts.values()), available_bytes()
    if needed > free:
        listed = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in parts.items())
        raise CapacityError(
            f"the model needs about {needed / 2**20:.0f} MiB ({listed}), and {free / 2**20:.0f} are free; "
            "lower max_num_tokens, max_num_seqs, max_model_len or kv_cache_bytes"
        )


def choose_max_samples(config: EngineConfig, division: Division) -> int:
    """One row of each request that runs; drafts take what the others leave, and one alone has some too."""
    if config.speculation == "off" or division.gpus:
        return config.max_num_seqs
    return max(config.max_num_seqs, min(1 + MAX_DRAFTS, config.max_num_tokens))


def plan_execution(config: EngineConfig, path: Path) -> ExecutorConfig:
    """Raises WeightFileError, ModelConfigError, BackendError, ValueError or CapacityError, each in one line."""
    check_isa()
    model = open_model(str(path))
    division = divide(config, model)
    if division.gpus and config.activation_bits == 8:
        raise ValueError("activation_bits is for CPUs: GPUs multiply bf16")
    plan = division.plan
    max_model_len = choose_max_model_len(config, model.config)
    kv_type = choose_kv_type(config, model, division)
    num_blocks = choose_num_blocks(config, model, division, max_model_len=max_model_len, kv_type=kv_type)
    max_samples = choose_max_samples(config, division)
    settings = RankSettings(
        max_tokens=config.max_num_tokens,
        max_samples=max_samples,
        num_slots=config.max_num_seqs,
        max_blocks=-(-max_model_len // int(_C.BLOCK_SIZE)),
        num_blocks=num_blocks,
        kv_type=kv_type,
        activation_bits=config.activation_bits,
        mailbox_capacity=mailbox_capacity(
            num_slots=config.max_num_seqs,
            max_tokens=config.max_num_tokens,
            max_samples=max_samples,
            num_blocks=num_blocks,
        ),
    )
    if not division.gpus:
        check_memory(model, plan, settings)
    return ExecutorConfig(
        model=model,
        division=division,
        settings=settings,
        max_model_len=max_model_len,
        on_loss=config.on_loss,
        heartbeat_s=config.heartbeat_s,
        makes_drafts=not division.gpus,
    )
