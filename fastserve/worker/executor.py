"""Runs steps: the engine submits them and collects results in the same order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from fastserve import _C
from fastserve.distributed.cores import assign_cores, usable_cores
from fastserve.distributed.device_group import DeviceGroup
from fastserve.distributed.rank_program import OpenModel, RankSettings, build_rank_program
from fastserve.distributed.shard_plan import ShardPlan
from fastserve.errors import GroupError
from fastserve.step import Step, StepResult
from fastserve.worker.step_codec import StepEncoder, decode_result

WRITE_TIMEOUT_MS = 10_000
POLL_MS = 200  # how often a waiting collect looks whether the group still lives


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """All that ranks need to know, with nothing left to decide."""

    model: OpenModel
    plan: ShardPlan
    settings: RankSettings
    max_model_len: int
    num_threads: int | None  # of each rank; None: the cores are shared out


class MailboxExecutor(ABC):
    """What both kinds of executor share: a step goes out as a message, a result comes back as one."""

    def __init__(self, config: ExecutorConfig, steps: _C.Mailbox, results: _C.Mailbox) -> None:
        self._config = config
        self._steps = steps
        self._results = results
        self._encoder = StepEncoder()
        self.block_size = int(_C.BLOCK_SIZE)
        self.num_blocks = (config.settings.num_blocks,)
        self.max_samples = config.settings.max_samples
        self.vocab_size = config.model.config.vocab_size
        self.max_model_len = config.max_model_len

    def submit(self, step: Step) -> None:
        """Queues one step; raises RankLostError or GroupError if nobody will run it."""
        if not self._steps.write(self._encoder.encode(step), WRITE_TIMEOUT_MS):
            raise self._why_not()

    def collect(self) -> StepResult:
        """The oldest step's result; waits for it. Raises RankLostError or GroupError if it will never come."""
        while True:
            try:
                message = self._results.read(0, 0, POLL_MS)
            except EOFError:
                raise self._why_not() from None
            if message is not None:
                return decode_result(message)

    @property
    @abstractmethod
    def packed_bytes(self) -> list[int]:
        """Bytes of packed weights, per rank."""

    @abstractmethod
    def close(self) -> None:
        """Ends everything that was started. Idempotent."""

    @property
    @abstractmethod
    def failure(self) -> GroupError | None:
        """Why no step will run any more, known as soon as it happens; None while all is well, and after `close`."""

    def _why_not(self) -> GroupError:
        return self.failure or GroupError("the executor is closed")


class LocalExecutor(MailboxExecutor):
    """One device: the worker loop runs on a thread of this process, without the GIL."""

    def __init__(self, config: ExecutorConfig) -> None:
        (cores,) = assign_cores(usable_cores(), 1, config.num_threads)
        self._rank = build_rank_program(
            config.model, config.plan.shards[0], config.settings, exchange=None, num_threads=len(cores)
        )
        capacity = config.settings.mailbox_capacity
        super().__init__(config, _C.Mailbox.local(capacity), _C.Mailbox.local(capacity))
        self._worker = _C.WorkerThread(self._rank.program, cores, self._steps, self._results)

    @property
    def packed_bytes(self) -> list[int]:
        return [self._rank.packed_bytes]

    def close(self) -> None:
        self._worker.stop()

    @property
    def failure(self) -> GroupError | None:
        return GroupError(self._worker.error) if self._worker.error else None


class GroupExecutor(MailboxExecutor):
    """Several devices: one process each."""

    def __init__(self, config: ExecutorConfig) -> None:
        model = config.model
        cores = assign_cores(usable_cores(), config.plan.num_ranks, config.num_threads)
        self._group = DeviceGroup(
            model.file.path, config.plan, config.settings, hidden=model.config.hidden, cores=cores
        )
        super().__init__(config, self._group.steps, self._group.results)

    @property
    def packed_bytes(self) -> list[int]:
        return self._group.packed_bytes

    @property
    def pids(self) -> list[int]:
        return self._group.pids

    def close(self) -> None:
        self._group.close()

    @property
    def failure(self) -> GroupError | None:
        return self._group.error


def start_executor(config: ExecutorConfig) -> MailboxExecutor:
    return LocalExecutor(config) if config.plan.num_ranks == 1 else GroupExecutor(config)
