"""One rank's forward pass and sampling on its GPU: what the native Program is for CPUs.

A step's rows go to the device in one copy. Up to some hundred rows (buckets.py) the step is two CUDA graphs: from the
rows to logits, and from logits to tokens; what requests want done to their logits comes between. Larger steps call the
same ops one by one. The ranks of a group hold parts of the vocabulary: each puts its logits into its columns of zeros,
the sum over ranks is all logits, exactly, and every rank draws the same tokens from them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from fastserve import _C, ops
from fastserve.cuda.buckets import MAX_GRAPH, aligned_rows, choose_bucket, choose_buckets
from fastserve.cuda.device_ops import DeviceOps
from fastserve.cuda.device_weights import DeviceWeight
from fastserve.cuda.kv_memory import KvMemory
from fastserve.cuda.logit_edits import apply_edits
from fastserve.cuda.reports import Report, Wanted, make_reports, own_logprobs
from fastserve.cuda.runtime import Event, Graph, Runtime
from fastserve.cuda.step_buffers import Rows, make_step_buffers
from fastserve.distributed.rank_program import RankSettings
from fastserve.errors import RankLostError
from fastserve.models.config import ModelConfig
from fastserve.models.llama import LlamaInputs, LlamaWeights, Shard, forward
from fastserve.ops.group import Group

KV_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
STEP_TIMEOUT_S = 60.0  # a longer step is that of a GPU that hangs: its rank shows no sign of life any more
LEAVE_TIMEOUT_S = 2.0  # our kernels end in microseconds once the epoch is raised; NCCL's wait on
SPINNING_LOOKS = 200  # at an event, about 1 us each: most decode steps end within them
SLEEP_S = 50e-6


@dataclass(frozen=True, slots=True)
class DeviceModel:
    config: ModelConfig
    shard: Shard
    weights: LlamaWeights[DeviceWeight, Tensor]
    num_bytes: int  # packed


@dataclass(frozen=True, slots=True)
class Captured:
    """The graphs of one number of rows."""

    logits: Graph[Tensor]
    tokens: Graph[Tensor]


class DeviceProgram:
    """Runs step after step, after `prepare`. Raises RuntimeError with CUDA's own words."""

    def __init__(
        self,
        runtime: Runtime,
        model: DeviceModel,
        settings: RankSettings,
        *,
        exchange: _C.Exchange,
        group: Group | None,
    ) -> None:
        """group: None for a rank that is alone; its exchange is where it shows that it lives."""
        self._runtime = runtime
        self._model = model
        self._settings = settings
        self.exchange = exchange
        self._group = group
        self._stream = runtime.new_stream()
        config, shard = model.config, model.shard
        with self._stream.run():
            self.slots, self._buffers = make_step_buffers(runtime, settings, config.vocab_size)
            self.kv = KvMemory(
                runtime,
                num_layers=config.num_layers,
                num_blocks=settings.num_blocks + 1,  # the last one is for padding
                num_kv_heads=shard.num_kv_heads,
                head_dim=config.head_dim,
                dtype=KV_DTYPES[settings.kv_type],
            )
            self._kv_of_head = torch.tensor(shard.kv_of_head, dtype=torch.int32, device=runtime.device)
        self._tokens = runtime.pinned(settings.max_samples, dtype=torch.int32)
        self._sample_sizes = choose_buckets(settings.max_samples)
        self._graph_sizes = choose_buckets(min(settings.max_tokens, settings.max_samples, MAX_GRAPH))
        self._captured: dict[int, Captured] = {}

    def prepare(self) -> None:
        """Runs steps of padding of all sizes, so that kernels are compiled, and captures those that have a graph.

        All ranks of a group do it together: the steps' sums are real ones.
        """
        with torch.inference_mode():
            for num_rows in reversed(choose_buckets(self._settings.max_tokens)):
                if num_rows > self._graph_sizes[-1] or num_rows == self._settings.max_tokens:
                    self._run_padding(aligned_rows(num_rows, self._settings.max_tokens))
            for num_rows in reversed(self._graph_sizes):  # the largest first: the others fit into its memory
                self._captured[num_rows] = self._capture(num_rows)

    def run(self, message: bytes) -> bytes:
        """One step of the mailbox, and the message that answers it. Raises RankLostError where a peer was lost."""
        start_ns = time.perf_counter_ns()
        self.slots.apply(message)
        tokens: list[int] = []
        reports: list[Report] = []
        if self.slots.num_tokens:
            with torch.inference_mode(), self._stream.run():
                tokens, reports = self._run_rows()
        self.slots.commit(tokens, reports)
        return self.slots.encode_result((time.perf_counter_ns() - start_ns) // 1000)

    def logits_of_graph(self, num_rows: int) -> Tensor:
        """[num_rows, V]: what that graph gave last, edited as requests wanted; for tests that look inside."""
        return self._captured[num_rows].logits.output

    def _run_padding(self, num_rows: int) -> None:
        num_samples = min(num_rows, self._settings.max_samples)
        with self._stream.run():
            self._buffers.load(num_rows, num_samples)
            rows = self._buffers.rows(num_rows, num_samples)
            self._draw(self._logits(rows), rows)
        self._stream.synchronize()

    def _capture(self, num_rows: int) -> Captured:
        with self._stream.run():
            self._buffers.load(num_rows, num_rows)
        rows = self._buffers.rows(num_rows, num_rows)
        logits = self._runtime.capture(lambda: self._logits(rows), self._stream)
        tokens = self._runtime.capture(lambda: self._draw(logits.output, rows), self._stream)
        self._stream.synchronize()
        return Captured(logits, tokens)

    def _run_rows(self) -> tuple[list[int], list[Report]]:
        num_rows, num_samples = self._padded()
        self._buffers.load(num_rows, num_samples)
        captured = self._captured.get(num_rows) if num_rows == num_samples else None
        if captured is None:
            rows = self._buffers.rows(num_rows, num_samples)
            logits = self._logits(rows)
        else:
            logits = replayed(captured.logits)
        wanted = [Wanted(*entry) for entry in self.slots.reports()]
        logprobs = own_logprobs(logits, wanted)
        apply_edits(self.slots, logits)
        drawn = self._draw(logits, rows) if captured is None else replayed(captured.tokens)
        self._tokens[:num_samples].copy_(drawn, non_blocking=True)
        self._wait(self._stream.record())
        tokens = self._tokens[: self.slots.num_samples].tolist()
        return tokens, make_reports(logprobs, wanted, tokens)

    def _padded(self) -> tuple[int, int]:
        """With how many rows and sampled rows the step runs: those of a graph where one holds both."""
        num_rows, num_samples = self.slots.num_tokens, self.slots.num_samples
        bucket = choose_bucket(self._graph_sizes, max(num_rows, num_samples))
        if bucket is not None:
            return bucket, bucket
        samples = choose_bucket(self._sample_sizes, num_samples)
        assert samples is not None
        return aligned_rows(num_rows, self._settings.max_tokens), samples

    def _wait(self, event: Event) -> None:
        """A rank that waits for its GPU lives, and so does one whose GPU waits for a peer, up to a point.

        Raises RuntimeError where the group was lost and the GPU does not come out of the step: this process cannot go
        on with it.
        """
        start_s = time.monotonic()
        lost_s = None
        num_looks = 0
        while not event.done():
            now_s = time.monotonic()
            num_looks += 1
            if num_looks > SPINNING_LOOKS:
                time.sleep(SLEEP_S)
            if now_s < start_s + STEP_TIMEOUT_S:
                self.exchange.beat()
            if self.exchange.failed:
                lost_s = lost_s or now_s
                if now_s > lost_s + LEAVE_TIMEOUT_S:
                    raise RuntimeError("the GPU did not come out of a step whose group was lost")
        if self.exchange.failed:
            raise RankLostError("a rank of the group was lost in the middle of a step")

    def _logits(self, rows: Rows) -> Tensor:
        """[S, V], the same on every rank."""
        config, shard = self._model.config, self._model.shard
        inputs = LlamaInputs(
            token_ids=rows.token_ids,
            positions=rows.index.positions,
            caches=self.kv.caches,
            index=rows.index,
            kv_of_head=self._kv_of_head,
            sample_rows=rows.sample_rows,
            group=self._group,
        )
        own: Tensor = forward(DeviceOps, config, shard, self._model.weights, inputs)
        if self._group is None:
            return own
        logits = own.new_zeros((own.shape[0], config.vocab_size))
        logits[:, slice(*shard.vocab)] = own
        ops.all_reduce(logits, self._group)
        return logits

    @staticmethod
    def _draw(logits: Tensor, rows: Rows) -> Tensor:
        """[S] int32"""
        return ops.sample(
            logits,
            rows.temperature,
            rows.seed,
            rows.output_idx,
            top_k=rows.top_k,
            top_p=rows.top_p,
            min_p=rows.min_p,
        ).token_ids


def replayed(graph: Graph[Tensor]) -> Tensor:
    graph.replay()
    return graph.output
