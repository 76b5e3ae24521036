"""The process that measures one device: device_probe.py MODEL RANK CORE,CORE...

It says that it is ready, starts when it is told to, and prints how many rounds a second it ran. A round is a prefill
and some decodes over the model's first layers, by the very program that a rank runs.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from fastserve import _C
from fastserve.distributed.planned_faults import commit_slowness
from fastserve.distributed.rank_program import RankSettings, build_rank_program, open_model
from fastserve.distributed.shard_plan import make_plan
from fastserve.step import GREEDY, BlockGrant, Chunk, SlotOpening, Step
from fastserve.worker.step_codec import StepEncoder, decode_result, mailbox_capacity

NUM_LAYERS = 6  # more than a second-level cache holds
NUM_ROWS = 32  # of the prefill
NUM_DECODES = 8
VOCABULARY = 1024
NUM_ROUNDS = 9  # the fastest counts: others were disturbed
TIMEOUT_MS = 60_000


class Probe:
    def __init__(self, path: str, rank: int, cores: list[int]) -> None:
        model = open_model(path)
        config = replace(model.config, num_layers=min(NUM_LAYERS, model.config.num_layers))
        shard = replace(make_plan(config, 1).shards[0], vocab=(0, min(VOCABULARY, config.vocab_size)))
        self._num_blocks = -(-(NUM_ROWS + NUM_DECODES) // int(_C.BLOCK_SIZE))
        settings = RankSettings(
            max_tokens=NUM_ROWS,
            max_samples=1,
            num_slots=1,
            max_blocks=self._num_blocks,
            num_blocks=self._num_blocks,
            kv_type="bf16",
            mailbox_capacity=mailbox_capacity(
                num_slots=1, max_tokens=NUM_ROWS, max_samples=1, num_blocks=self._num_blocks
            ),
        )
        self._rank = build_rank_program(
            model._replace(config=config), shard, settings, exchange=None, num_threads=len(cores)
        )
        commit_slowness(self._rank.program, rank=rank)
        self._steps, self._results = (_C.Mailbox.local(settings.mailbox_capacity) for _ in range(2))
        self._worker = _C.WorkerThread(self._rank.program, cores, self._steps, self._results)
        self._encoder = StepEncoder()
        self._num_steps = 0

    def round_us(self) -> int:
        """Microseconds of one round."""
        chunk = Chunk(0, tuple(range(NUM_ROWS)), sample=True)
        opening = Step(
            step_id=self._num_steps + 1,
            closed=(0,) if self._num_steps else (),
            opened=(SlotOpening(0, NUM_ROWS, GREEDY),),
            blocks=tuple(BlockGrant(0, 0, block) for block in range(self._num_blocks)),
            chunks=(chunk,),
        )
        elapsed_us = self._run(opening)
        for _ in range(NUM_DECODES):
            elapsed_us += self._run(Step(step_id=self._num_steps + 1, decodes=(0,)))
        return elapsed_us

    def close(self) -> None:
        self._worker.stop()

    def _run(self, step: Step) -> int:
        self._num_steps = step.step_id
        message = None
        if self._steps.write(self._encoder.encode(step), TIMEOUT_MS):
            message = self._results.read(0, 0, TIMEOUT_MS)
        if message is None:
            raise RuntimeError(self._worker.error or "a step took too long")
        return decode_result(message).elapsed_us


def main(path: str, rank: str, cores: str) -> None:
    probe = Probe(path, int(rank), [int(core) for core in cores.split(",")])
    probe.round_us()  # touches every page
    print("ready", flush=True)
    sys.stdin.readline()
    print(1e6 / min(probe.round_us() for _ in range(NUM_ROUNDS)))
    probe.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
