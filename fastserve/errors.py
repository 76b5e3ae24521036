"""What can go wrong that is neither the caller's nor our own fault: the world's errors, by type."""

from __future__ import annotations


class FastServeError(Exception):
    """Base of all errors that FastServe raises for what happens around it."""


class WeightFileError(FastServeError):
    """A weight file is cut short, damaged, or of a kind that is not supported."""


class ModelNotFoundError(FastServeError):
    """No such model is known here, or it could not be fetched."""


class ModelConfigError(FastServeError):
    """The model's own description contradicts itself or asks for what is not supported."""


class GroupError(FastServeError):
    """A device group could not be started, or it ended."""


class RankLostError(GroupError):
    """A rank of the group died or stopped answering; the message says which and how."""


class CapacityError(FastServeError):
    """A request can never fit (KV blocks, context); the message holds the numbers."""


class BackendError(FastServeError):
    """What would run an op on this device is not installed; the message says how to get it."""


class OverloadedError(FastServeError):
    """The queue of waiting requests is full; `retry_after_s` estimates when to come back."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
