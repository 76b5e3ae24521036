"""Steps of one device, in this process."""

from __future__ import annotations

from fastserve import _C
from fastserve.distributed.rank_program import build_rank_program
from fastserve.errors import GroupError
from fastserve.worker.executor import ExecutorConfig, MailboxExecutor


class LocalExecutor(MailboxExecutor):
    """The worker loop runs on a thread of its own, without the GIL."""

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
