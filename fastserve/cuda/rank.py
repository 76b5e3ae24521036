"""The process that drives one GPU of a group; what is said of distributed/rank.py goes for it too."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import torch

from fastserve import _C
from fastserve.cuda.device_program import DeviceModel, DeviceProgram
from fastserve.cuda.device_weights import choose_activation_dtype, load_on_device
from fastserve.cuda.rank_group import RankGroup
from fastserve.cuda.runtime import CudaRuntime, Runtime
from fastserve.distributed.control import StartRank
from fastserve.distributed.mailboxes import open_mailboxes
from fastserve.distributed.rank import Rank, main
from fastserve.distributed.rank_program import load_shard, open_model
from fastserve.errors import CapacityError, GroupError, RankLostError

SPIN_US = 50  # covers the gap between two steps that were queued ahead
POLL_MS = 250  # an idle rank beats this often; a step wakes it at once
RESULT_TIMEOUT_MS = 5000  # the engine reads results or is gone


class CudaRank(Rank[DeviceModel]):
    def __init__(self, channel: socket.socket, runtime_of: Callable[[int], Runtime] = CudaRuntime) -> None:
        super().__init__(channel)
        self._runtime_of = runtime_of
        self._runtime: Runtime | None = None

    def serve(self, start: StartRank, region: _C.SharedRegion) -> str:
        assert start.gpu is not None
        exchange = _C.Exchange(region, start.rank)
        runtime = self._runtime = self._runtime or self._runtime_of(start.gpu)
        try:
            model = self._weights(start)
            group = self._group_of(start, exchange)
            program = DeviceProgram(runtime, model, start.settings, exchange=exchange, group=group)
            program.prepare()
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                f"GPU {start.gpu} has too little memory: {str(error).splitlines()[0]}; "
                "lower max_num_tokens, max_num_seqs, max_model_len or kv_cache_bytes"
            ) from None
        self._say_ready(model.num_bytes)
        why = _run_steps(program, start, region, exchange)
        if region.failed and group is not None and not group.outlives_loss:
            raise GroupError("what the GPUs exchanged through ended with the rank that was lost")
        return why

    def _group_of(self, start: StartRank, exchange: _C.Exchange) -> RankGroup | None:
        return RankGroup(exchange) if start.num_ranks > 1 else None

    def _load(self, start: StartRank) -> DeviceModel:
        assert self._runtime is not None
        loaded = load_shard(open_model(start.path), start.shard, num_threads=len(start.cores))
        device = self._runtime.device
        dtype = choose_activation_dtype(loaded.weights, device)
        weights = load_on_device(loaded.weights, loaded.model.file, device, dtype)
        return DeviceModel(loaded.model.config, start.shard, weights, loaded.packed_bytes)


def _run_steps(
    program: DeviceProgram, start: StartRank, region: _C.SharedRegion, exchange: _C.Exchange
) -> str:
    steps, results = open_mailboxes(region, start.settings.mailbox_capacity, start.num_ranks, create=False)
    while True:
        try:
            message = steps.read(start.rank, SPIN_US, POLL_MS)
        except EOFError:
            return ""
        if region.failed:
            return "the group ended while this rank was waiting for a step"
        exchange.beat()
        if message is None:
            continue
        start_ns = time.perf_counter_ns()
        try:
            result = program.run(message)
        except RankLostError as error:
            return str(error)
        exchange.add_step(time.perf_counter_ns() - start_ns)
        if start.rank == 0 and not results.write(result, RESULT_TIMEOUT_MS):
            return "the engine reads no results"


if __name__ == "__main__":
    main(CudaRank)
