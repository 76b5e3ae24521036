"""The process that drives one device of a group: started by exec, it loads its shard and serves steps."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

from fastserve import _C
from fastserve.distributed.control import RankFailed, RankReady, StartRank, receive_start, send
from fastserve.distributed.mailboxes import open_mailboxes
from fastserve.distributed.rank_program import build_rank_program, open_model
from fastserve.errors import FastServeError


def exit_with_the_engine(channel: socket.socket) -> None:
    """Ends this process when the engine's end of the channel closes, even in the middle of a step."""

    def watch() -> None:
        while True:
            try:
                if not channel.recv(1):
                    break
            except OSError:
                break
        os._exit(0)

    threading.Thread(target=watch, name="engine-watch", daemon=True).start()


def serve(channel: socket.socket, start: StartRank) -> str:
    """Runs until the group ends; returns why, in one line, where that was not asked for."""
    region = _C.SharedRegion.attach(start.region_fd)
    exchange = _C.Exchange(region, start.rank)
    steps, results = open_mailboxes(region, start.settings.mailbox_capacity, start.num_ranks, create=False)
    built = build_rank_program(
        open_model(start.path), start.shard, start.settings, exchange=exchange, num_threads=len(start.cores)
    )
    send(channel, RankReady(packed_bytes=built.packed_bytes))
    exit_with_the_engine(channel)
    return str(
        _C.run_worker_loop(
            built.program, start.cores, steps, start.rank, results if start.rank == 0 else None
        )
    )


def main() -> int:
    # Ctrl-C goes to the whole terminal; the engine decides when its ranks end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    try:
        error, kind = serve(channel, receive_start(channel)), ""
    except EOFError:
        return 0
    except (FastServeError, ValueError, OSError, RuntimeError) as raised:
        error, kind = str(raised), type(raised).__name__
    if not error:
        return 0
    try:
        send(channel, RankFailed(message=error, kind=kind))
    except OSError:
        print(f"fastserve: a rank ended, and so had the engine: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no teardown of gigabytes that the kernel frees anyway
