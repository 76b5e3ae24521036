"""The fake GPU shows what would go wrong on a real one."""

from __future__ import annotations

import gc

import pytest
import torch

from fastserve.testing.fake_cuda import FakeRuntime


def test_what_comes_to_the_host_is_there_once_it_was_waited_for() -> None:
    runtime = FakeRuntime()
    stream, host = runtime.new_stream(), runtime.pinned(2, dtype=torch.int32)
    with stream.run():
        device = torch.tensor([1, 2], dtype=torch.int32)
        host.copy_(device, non_blocking=True)
        device.fill_(9)  # later in the stream: not seen by the copy
    done = stream.record()
    assert host.tolist() == [0, 0]
    assert not done.done()
    assert done.done()
    assert host.tolist() == [1, 2]


def test_what_comes_from_the_host_is_read_when_it_is_needed() -> None:
    runtime = FakeRuntime()
    stream, host = runtime.new_stream(), runtime.pinned(1, dtype=torch.int32)
    device = torch.zeros(1, dtype=torch.int32)
    with stream.run():
        device.copy_(host, non_blocking=True)
        host.fill_(7)  # too early: the copy has not read it
        total = device + 1
    assert total.tolist() == [8]


def test_a_graph_replays_on_the_same_memory_with_the_numbers_of_its_capture() -> None:
    runtime = FakeRuntime()
    stream = runtime.new_stream()
    rows, factor = torch.ones(2), 3
    graph = runtime.capture(lambda: rows[:1] * factor + 1, stream)
    rows.fill_(5)
    factor = 100
    output = graph.output
    with stream.run():
        graph.replay()
    assert output.tolist() == [16.0]


def test_a_graph_repeats_what_its_ops_change() -> None:
    runtime = FakeRuntime()
    stream, total = runtime.new_stream(), torch.zeros(1)
    graph = runtime.capture(lambda: total.add_(1), stream)
    assert total.item() == 2.0  # once to warm up, once captured
    with stream.run():
        graph.replay()
    assert total.item() == 3.0


def test_waiting_while_capturing_is_refused() -> None:
    runtime = FakeRuntime()
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        runtime.capture(lambda: torch.ones(1).item(), runtime.new_stream())


def test_a_graph_may_not_copy_from_memory_that_the_host_writes() -> None:
    runtime = FakeRuntime()
    host, device = runtime.pinned(1, dtype=torch.float32), torch.zeros(1)
    with pytest.raises(RuntimeError, match="the host's memory"):
        runtime.capture(lambda: device.copy_(host), runtime.new_stream())


def test_further_streams_change_memory_as_late_as_they_may() -> None:
    runtime = FakeRuntime()
    first, second = runtime.new_stream(), runtime.new_stream()
    memory = torch.zeros(1)
    with second.run():
        memory.fill_(4)
    done = second.record()
    assert memory.item() == 0.0
    first.wait(done)
    assert memory.item() == 4.0


def test_memory_is_given_back_and_ends() -> None:
    runtime = FakeRuntime(memory_bytes=1000)
    with runtime.new_stream().run():
        for _ in range(5):
            kept = torch.zeros(200)
            assert kept.numel() == 200
            del kept
            gc.collect()
        kept = torch.zeros(200)
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(200)
        assert kept.numel() == 200
