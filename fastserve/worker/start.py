"""Starts the executor that a configuration asks for."""

from __future__ import annotations

from fastserve.worker.executor import ExecutorConfig, MailboxExecutor
from fastserve.worker.local_executor import LocalExecutor


def start_executor(config: ExecutorConfig) -> MailboxExecutor:
    if config.division.plan.num_ranks == 1 and not config.division.gpus:
        return LocalExecutor(config)
    from fastserve.worker.group_executor import GroupExecutor  # heavy, and one device starts without

    return GroupExecutor(config)
