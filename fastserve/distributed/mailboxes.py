"""The two mailboxes of a group, in its shared region: steps to all ranks, results from rank 0."""

from __future__ import annotations

from fastserve import _C

CACHE_LINE = 128


def mailbox_bytes(capacity: int) -> int:
    """Room for one mailbox, rounded so that the next one starts on a cache line of its own."""
    return -(-int(_C.Mailbox.num_bytes(capacity)) // CACHE_LINE) * CACHE_LINE


def open_mailboxes(
    region: _C.SharedRegion, capacity: int, num_ranks: int, *, create: bool
) -> tuple[_C.Mailbox, _C.Mailbox]:
    """(steps, results) at the start of the region's extra bytes."""
    first = region.extra_address
    second = first + mailbox_bytes(capacity)
    assert region.extra_bytes >= 2 * mailbox_bytes(capacity)
    steps = _C.Mailbox.at(first, capacity, num_ranks, create, region)
    return steps, _C.Mailbox.at(second, capacity, 1, create, region)
