from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest

from fastserve import _C
from fastserve.ops.group import handle_of, reducer_of


def test_a_handle_leads_to_its_exchange_as_long_as_that_lives() -> None:
    exchange = _C.Exchange(_C.SharedRegion.create(2, 4096, 0), 0)
    handle = handle_of(SimpleNamespace(rank=0, size=2, spans_hosts=False, exchange=exchange))
    assert reducer_of(handle) is exchange
    del exchange
    gc.collect()
    with pytest.raises(ValueError, match="exchange must be the handle of a living group"):
        reducer_of(handle)


def test_alone_there_is_no_exchange() -> None:
    assert reducer_of(handle_of(None)) is None
