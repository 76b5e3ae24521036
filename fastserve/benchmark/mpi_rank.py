"""A rank of an MPI that is measured: mpi_rank.py SOCKET [CORE ...].

mpirun starts it with an interpreter that has mpi4py and may lack fastserve. It sleeps on the socket until it is told
to sum, so that it takes no core from others meanwhile.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
from time import perf_counter

from mpi4py import MPI

WORLD = MPI.COMM_WORLD


def main() -> None:
    path, *cores = sys.argv[1:]
    if cores:
        os.sched_setaffinity(0, {int(cores[WORLD.Get_rank()])})
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(path)
        with channel.makefile("rw") as messages:
            print(json.dumps({"rank": WORLD.Get_rank()}), file=messages, flush=True)
            for line in messages:
                print(json.dumps(all_reduce_s(**json.loads(line))), file=messages, flush=True)


def all_reduce_s(count: int, calls: int) -> float:
    """Seconds per sum in place of so many fp32, from a common start."""
    buffer = array.array("f", [1.0]) * count
    WORLD.Allreduce(MPI.IN_PLACE, buffer)
    assert buffer[0] == buffer[-1] == WORLD.Get_size(), "MPI did not sum"
    buffer = array.array("f", [0.0]) * count  # so that sums of sums stay finite
    WORLD.Allreduce(MPI.IN_PLACE, buffer)
    WORLD.Barrier()
    start = perf_counter()
    for _ in range(calls):
        WORLD.Allreduce(MPI.IN_PLACE, buffer)
    return (perf_counter() - start) / calls


if __name__ == "__main__":
    main()
