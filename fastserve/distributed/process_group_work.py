"""What a collective of a process group is while it runs, and the threads that run them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import torch
from torch import distributed

from fastserve.errors import GroupError

Run = Callable[[], object]


class FutureWork(distributed.Work):
    """Ends with the result's tensors, or with what went wrong."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self._result = result
        self._error: Exception | None = None
        self._ended: torch.futures.Future[None] = torch.futures.Future()
        self._delivered: torch.futures.Future[Any] | None = None
        self.source: int | None = None  # of a message

    def finish(self, error: Exception | None) -> None:
        self._error = error
        self._ended.set_result(None)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Raises what went wrong (DistBackendError where a rank was lost)."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return True

    def _source_rank(self) -> int:  # torch asks by this name
        self.wait()
        if self.source is None:
            raise RuntimeError("only a receive has a source")
        return self.source

    def is_completed(self) -> bool:
        return bool(self._ended.done())

    def is_success(self) -> bool:
        return self.is_completed() and self._error is None

    def exception(self) -> Exception | None:
        return self._error

    def get_future(self) -> torch.futures.Future[Any]:
        # An error that Python sets on a future is a value to torch's C++, and DDP takes it for tensors. One that a
        # callback raises is an error to both; it comes out of backward() as a RuntimeError with this text.
        if self._delivered is None:
            self._delivered = self._ended.then(self._deliver)
        return self._delivered

    def result(self) -> Any:
        self.wait()
        return self._result

    def _deliver(self, _: object) -> object:
        if self._error is not None:
            raise self._error
        return self._result


class Lane:
    """Runs works one after the other: on a thread of its own, or in the caller's while nothing else is under way."""

    def __init__(self, name: str, explain: Callable[[Exception], Exception]) -> None:
        """explain: the error that the caller should see for one that a run raised."""
        self._name = name
        self._explain = explain
        self._queue: SimpleQueue[tuple[FutureWork, Run] | None] = SimpleQueue()
        self._running = threading.Lock()  # one at a time, whoever's thread it is
        self._lock = threading.Lock()  # of the two below
        self._num_queued = 0
        self._thread: threading.Thread | None = None
        self.busy_since_s: float | None = None

    def run_now(self, work: FutureWork, run: Run) -> None:
        """Returns when it has run; behind those that were queued before."""
        with self._lock:
            idle = self._num_queued == 0
            if idle:
                self._num_queued += 1
        if idle:
            self._run(work, run)
        else:
            self.queue(work, run)
            work.wait()

    def queue(self, work: FutureWork, run: Run) -> None:
        with self._lock:
            self._num_queued += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()
        self._queue.put((work, run))

    def attempt(self, run: Callable[[], bool]) -> bool:
        """Runs it in the caller's thread and says what it returned; False, without a run, while others run here."""
        with self._lock:
            if self._num_queued or not self._running.acquire(blocking=False):
                return False
        try:
            return run()
        finally:
            self._running.release()

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            if self._thread is not threading.current_thread():
                self._thread.join()

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            self._run(*item)

    def _run(self, work: FutureWork, run: Run) -> None:
        error: Exception | None = None
        try:
            with self._running:
                self.busy_since_s = time.monotonic()
                try:
                    run()
                finally:
                    self.busy_since_s = None
        except (GroupError, ValueError, RuntimeError) as raised:
            error = self._explain(raised)
        finally:
            with self._lock:
                self._num_queued -= 1
        work.finish(error)
