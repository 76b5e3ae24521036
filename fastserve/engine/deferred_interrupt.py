"""Holds Ctrl-C back while it would tear a step apart.

KeyboardInterrupt may be raised after a result was taken out of the mailbox and before anybody saw it; the
engine would be out of step with its ranks from then on.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class DeferredInterrupt:
    """In a `with` on the main thread: the first Ctrl-C takes effect at its end or in `settle`, a second one at once.

    The second is for ranks that hang. On another thread, or if SIGINT has no Python handler, nothing changes.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._frame: FrameType | None = None
        self._pending = False

    def __enter__(self) -> Self:
        self._pending = False
        self._handler = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self.settle()

    def settle(self) -> None:
        """Between steps: a Ctrl-C that is held back takes effect."""
        if self._pending:
            self._pending = False
            self._handler(signal.SIGINT, self._frame)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._pending:
            self._pending = False
            self._handler(signum, frame)
        self._pending, self._frame = True, frame
