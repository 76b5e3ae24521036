"""The native program's logits, position by position: what tests compare with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastserve import _C
from fastserve.distributed.rank_program import RankSettings, build_rank_program, open_model
from fastserve.distributed.shard_plan import make_plan
from fastserve.step import GREEDY, BlockGrant, Chunk, SlotOpening, Step
from fastserve.worker.step_codec import StepEncoder, decode_result, mailbox_capacity

TIMEOUT_MS = 60_000


def rank_logits(
    path: Path, token_ids: Sequence[int], *, kv_type: str, num_threads: int = 2, activation_bits: int = 14
) -> Tensor:
    """[T, V] fp32 of one sequence on one device, computed in one step."""
    model = open_model(str(path))
    num_tokens = len(token_ids)
    num_blocks = -(-num_tokens // int(_C.BLOCK_SIZE))
    settings = RankSettings(
        max_tokens=num_tokens,
        max_samples=num_tokens,
        num_slots=1,
        max_blocks=num_blocks,
        num_blocks=num_blocks,
        kv_type=kv_type,
        activation_bits=activation_bits,
        mailbox_capacity=mailbox_capacity(
            num_slots=1, max_tokens=num_tokens, max_samples=num_tokens, num_blocks=num_blocks
        ),
    )
    rank = build_rank_program(
        model, make_plan(model.config, 1).shards[0], settings, exchange=None, num_threads=num_threads
    )
    steps, results = (_C.Mailbox.local(settings.mailbox_capacity) for _ in range(2))
    worker = _C.WorkerThread(rank.program, [-1] * num_threads, steps, results)
    scores = tuple(token_ids[1:])
    step = Step(
        step_id=1,
        opened=(SlotOpening(0, num_tokens, GREEDY),),
        blocks=tuple(BlockGrant(0, 0, block) for block in range(num_blocks)),
        chunks=(Chunk(0, tuple(token_ids), sample=False, num_scores=num_tokens, score_targets=(*scores, 0)),),
    )
    assert steps.write(StepEncoder().encode(step), TIMEOUT_MS)
    message = results.read(0, 0, TIMEOUT_MS)
    assert message is not None, worker.error
    assert len(decode_result(message).samples) == num_tokens
    worker.stop()
    offset, stride = rank.logits
    data = rank.program.read_buffer(offset, num_tokens * stride * 4)
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(num_tokens, stride)
