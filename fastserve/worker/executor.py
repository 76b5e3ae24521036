"""Runs steps: the engine submits them and collects results in the same order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from fastserve import _C
from fastserve.config import OnLoss
from fastserve.distributed.device_group import DeviceGroup
from fastserve.distributed.epoch import GroupModel
from fastserve.distributed.rank_process import CPU_RANK
from fastserve.distributed.rank_program import OpenModel, RankSettings, build_rank_program
from fastserve.errors import GroupError, RankLostError
from fastserve.step import Step, StepResult
from fastserve.worker.division import Division
from fastserve.worker.protocol import RankTimes
from fastserve.worker.step_codec import StepEncoder, decode_result

WRITE_TIMEOUT_MS = 10_000
POLL_MS = 200  # how often a waiting collect looks whether the group still lives
GPU_RANK = "fastserve.cuda.rank"  # named, not imported: it needs torch, which this process does without
MAX_FUTILE_EPOCHS = 5  # in a row, that ended before they had finished a step


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """All that ranks need to know, with nothing left to decide."""

    model: OpenModel
    division: Division
    settings: RankSettings
    max_model_len: int
    on_loss: OnLoss = "respawn"
    heartbeat_s: float = 5.0
    makes_drafts: bool = True


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
        self.makes_drafts = config.makes_drafts
        self.vocab_size = config.model.config.vocab_size
        self.max_model_len = config.max_model_len

    def submit(self, step: Step) -> None:
        """Queues one step. Raises RankLostError if the epoch has ended, GroupError if nobody will run any more."""
        if not self._steps.write(self._encoder.encode(step), WRITE_TIMEOUT_MS):
            raise self._why_not()

    def collect(self) -> StepResult:
        """The oldest step's result; waits for it. Raises as `submit` does."""
        while True:
            try:
                message = self._results.read(0, 0, POLL_MS)
            except EOFError:
                raise self._why_not() from None
            if message is not None:
                return decode_result(message)

    @abstractmethod
    def recover(self) -> None:
        """After a RankLostError: waits until ranks without slots are ready, to which nothing was submitted.

        Raises GroupError where there will be none.
        """

    @property
    @abstractmethod
    def packed_bytes(self) -> list[int]:
        """Bytes of packed weights, per rank."""

    @property
    def rank_times(self) -> list[RankTimes]:
        return []

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
        (self.cores,) = config.division.cores
        self._rank = build_rank_program(
            config.model,
            config.division.plan.shards[0],
            config.settings,
            exchange=None,
            num_threads=len(self.cores),
        )
        capacity = config.settings.mailbox_capacity
        super().__init__(config, _C.Mailbox.local(capacity), _C.Mailbox.local(capacity))
        self._worker = _C.WorkerThread(self.program, self.cores, self._steps, self._results)

    @property
    def program(self) -> _C.Program:
        return self._rank.program

    @property
    def packed_bytes(self) -> list[int]:
        return [self._rank.packed_bytes]

    def recover(self) -> None:
        raise self._why_not()

    def close(self) -> None:
        self._worker.stop()

    @property
    def failure(self) -> GroupError | None:
        return GroupError(self._worker.error) if self._worker.error else None


class GroupExecutor(MailboxExecutor):
    """Several devices, or a GPU: one process each."""

    def __init__(self, config: ExecutorConfig) -> None:
        model = config.model
        self._group = DeviceGroup(
            GroupModel(
                path=model.file.path,
                hidden=model.config.hidden,
                settings=config.settings,
                cores=config.division.cores,
                gpus=[gpu.index for gpu in config.division.gpus],
                rank_module=GPU_RANK if config.division.gpus else CPU_RANK,
            ),
            config.division.plan,
            on_loss=config.on_loss,
            heartbeat_s=config.heartbeat_s,
            plan_for=config.division.plan_for,
        )
        self._epoch = self._group.next_epoch(after=0)
        self._num_futile = 0
        self._num_submitted = self._num_collected = 0  # in this epoch
        super().__init__(config, self._epoch.steps, self._epoch.results)

    def submit(self, step: Step) -> None:
        super().submit(step)
        self._num_submitted += 1

    def collect(self) -> StepResult:
        result = super().collect()
        self._num_collected += 1
        return result

    def recover(self) -> None:
        is_futile = self._num_submitted > 0 and self._num_collected == 0
        self._num_futile = self._num_futile + 1 if is_futile else 0
        if self._num_futile >= MAX_FUTILE_EPOCHS:
            raise RankLostError(
                f"{self._group.last_loss}; {self._num_futile} times in a row before a step was done"
            )
        self._epoch = self._group.next_epoch(after=self._epoch.number)
        self._steps, self._results = self._epoch.steps, self._epoch.results
        self._encoder = StepEncoder()
        self._num_submitted = self._num_collected = 0

    @property
    def packed_bytes(self) -> list[int]:
        return list(self._epoch.packed_bytes)

    @property
    def pids(self) -> list[int]:
        """Of the ranks that run; none while a lost one is being replaced."""
        epoch = self._group.epoch
        return [process.pid for process in epoch.ranks] if epoch is not None else []

    @property
    def rank_times(self) -> list[RankTimes]:
        region = self._epoch.region
        return [RankTimes(*region.times(rank)) for rank in range(region.num_ranks)]

    def close(self) -> None:
        self._group.close()

    @property
    def failure(self) -> GroupError | None:
        return self._group.failure

    def _why_not(self) -> GroupError:
        if self._group.closing:
            return GroupError("the executor is closed")
        return self.failure or RankLostError(self._group.last_loss or "the group's epoch has ended")


def start_executor(config: ExecutorConfig) -> MailboxExecutor:
    is_local = config.division.plan.num_ranks == 1 and not config.division.gpus
    return LocalExecutor(config) if is_local else GroupExecutor(config)
