"""Steps of several devices, or of a GPU."""

from __future__ import annotations

from fastserve.distributed.device_group import DeviceGroup
from fastserve.distributed.epoch import GroupModel
from fastserve.distributed.rank_process import CPU_RANK
from fastserve.errors import GroupError, RankLostError
from fastserve.step import Step, StepResult
from fastserve.worker.executor import ExecutorConfig, MailboxExecutor
from fastserve.worker.protocol import RankTimes
from fastserve.worker.step_codec import StepEncoder

GPU_RANK = "fastserve.cuda.rank"  # named, not imported: it needs torch, which this process does without
MAX_FUTILE_EPOCHS = 5  # in a row, that ended before they had finished a step


class GroupExecutor(MailboxExecutor):
    """One process for each device."""

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
