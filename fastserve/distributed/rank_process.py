"""One rank's process as the engine sees it: started by exec, told what to run, killed and reaped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from fastserve import errors
from fastserve.distributed.control import RankFailed, Report, StartRank, receive_report, send
from fastserve.errors import FastServeError, GroupError

END_TIMEOUT_S = 5.0  # from the end of a channel to that of its process
STOPPED = "T"  # a process's state in /proc
CPU_RANK = "fastserve.distributed.rank"  # the module that a rank on cores runs


class RankProcess:
    """Runs `module` on `device`, as whatever rank it is told to be. Hashable by identity."""

    def __init__(self, device: int, module: str = CPU_RANK) -> None:
        self.device = device
        self._failure = ""
        self.channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, order: StartRank, region_fd: int) -> None:
        """Raises OSError if it is gone."""
        send(self.channel, order, region_fd)

    def report(self) -> Report:
        """What it says next; waits for it. Raises EOFError if it is gone, ValueError for nonsense."""
        try:
            return receive_report(self.channel)
        except OSError as error:  # a reset: it ended with a message unread
            raise EOFError(str(error)) from error

    def lives(self) -> bool:
        """Whether what it says next is good news; to be asked when it has said something."""
        try:
            report = self.report()
        except (EOFError, ValueError):
            return False
        if isinstance(report, RankFailed):
            self._failure = report.message
        return not isinstance(report, RankFailed)

    def how_it_was_lost(self) -> str:
        """After `lives` was false."""
        return self._failure or self.how_it_ended()

    def is_stopped(self) -> bool:
        """By a signal or a debugger; not merely waiting."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] == STOPPED

    def how_it_ended(self) -> str:
        """Once its channel is closed; reaps it."""
        try:
            code = self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "closed its channel"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"

    def wait(self, timeout_s: float) -> None:
        """For an end in good order; returns after timeout_s at the latest."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(timeout_s, 0.01))

    def kill(self) -> None:
        """It is gone and reaped when this returns: nothing of it writes any more. Again is harmless."""
        self._process.kill()
        self._process.wait()
        self.channel.close()


def error_of(report: RankFailed) -> FastServeError:
    """The error that a rank reported, as the type that it was."""
    kind = getattr(errors, report.kind, GroupError)
    known = isinstance(kind, type) and issubclass(kind, FastServeError)
    return (kind if known else GroupError)(report.message)


def _environment() -> dict[str, str]:
    """The rank finds the same packages as this process, however they were found here."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path}
