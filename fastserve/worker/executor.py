"""What runs steps: the engine submits them and collects results in the same order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from fastserve import _C
from fastserve.config import OnLoss
from fastserve.distributed.rank_program import OpenModel, RankSettings
from fastserve.errors import GroupError
from fastserve.step import Step, StepResult
from fastserve.worker.division import Division
from fastserve.worker.protocol import RankTimes
from fastserve.worker.step_codec import StepEncoder, decode_result

WRITE_TIMEOUT_MS = 10_000
POLL_MS = 200  # how often a waiting collect looks whether the group still lives


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
