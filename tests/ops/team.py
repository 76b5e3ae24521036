"""The team of threads that ops run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import fastserve


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = fastserve._C.ops.num_threads()
    fastserve._C.ops.set_num_threads(count)
    try:
        yield
    finally:
        fastserve._C.ops.set_num_threads(before)
