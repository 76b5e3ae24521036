"""The engine: schedule, run, postprocess; one step ahead of its results.

While the ranks run step k, the engine has queued step k + 1 already: positions are known without the sampled
ids, which the ranks keep. What step k + 1 drew for a request that ended in step k is surplus and is dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from random import Random, SystemRandom
from typing import Any

from fastserve.cache.block_manager import BlockManager
from fastserve.config import EngineConfig
from fastserve.engine.choice import Choice, ending_ids, slot_sampling
from fastserve.engine.metrics import EngineMetrics
from fastserve.engine.outputs import ChoiceDelta
from fastserve.engine.replay import replay
from fastserve.engine.step_samples import samples_of_rows
from fastserve.engine.text import EngineTokenizer
from fastserve.errors import RankLostError
from fastserve.request import SamplingParams
from fastserve.scheduler.fcfs import Fcfs
from fastserve.scheduler.policy import Policy
from fastserve.scheduler.prompt_pace import PromptPace
from fastserve.scheduler.request_state import RequestState
from fastserve.scheduler.scheduler import Scheduler
from fastserve.scheduler.speculation import Speculation
from fastserve.scheduler.step_draft import RowKind, ScheduledStep
from fastserve.step import Sampled, StepResult
from fastserve.worker.protocol import Executor

MAX_STEPS_AHEAD = 2  # one that runs, one that waits: a third would only delay new requests

_POLICIES: dict[str, Callable[[], Policy]] = {"fcfs": Fcfs}


class Engine:
    """Used by one thread. Owns the executor: `close` ends it."""

    def __init__(
        self,
        executor: Executor,
        tokenizer: EngineTokenizer,
        config: EngineConfig,
        *,
        chat_template: Any = None,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,  # of seeds, for requests that bring none
    ) -> None:
        self.config = config
        self.executor = executor
        self.metrics = EngineMetrics()
        self.max_model_len = executor.max_model_len
        self.tokenizer = tokenizer
        self.chat_template = chat_template  # None: a base model, which cannot chat
        self._clock = clock
        if random is None:
            random = SystemRandom() if config.seed is None else Random(config.seed)
        self._random = random
        self._scheduler = Scheduler(
            blocks=BlockManager(executor.num_blocks, executor.block_size),
            policy=_POLICIES[config.policy](),
            max_num_tokens=config.max_num_tokens,
            max_num_seqs=config.max_num_seqs,
            max_samples=executor.max_samples,
            max_model_len=executor.max_model_len,
            max_waiting=config.max_waiting,
            pace=PromptPace(config.max_step_ms),
            speculation=Speculation() if config.speculation == "auto" and executor.makes_drafts else None,
        )
        self._choices: dict[str, dict[int, Choice]] = {}  # of live requests
        self._arrival_s: dict[str, float] = {}
        self._steps_ahead: deque[ScheduledStep] = deque()
        self.metrics.watch_ranks(lambda: executor.rank_times)
        self.metrics.watch(
            running=lambda: self._scheduler.num_running,
            waiting=lambda: self._scheduler.num_waiting,
            kv_usage=lambda: self._scheduler.blocks.usage,
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do: requests to run, or steps to collect."""
        return bool(self._choices or self._steps_ahead)

    @property
    def num_requests(self) -> int:
        return len(self._choices)

    @property
    def num_free_blocks(self) -> int:
        return self._scheduler.blocks.num_free

    def has_request(self, request_id: str) -> bool:
        """Whether a choice of it has not ended."""
        return request_id in self._choices

    def room(self) -> int:
        """Choices that `add_request` still takes before it raises OverloadedError."""
        return self._scheduler.room()

    def add_request(self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Queues a request; choice i of n draws with seed + i.

        Raises ValueError (the id is taken, a token id is out of range), CapacityError (it can never fit) or
        OverloadedError (the queue is full); then nothing was queued.
        """
        prompt = list(prompt_token_ids)
        self._check(request_id, prompt, params)
        max_tokens = params.max_tokens
        if max_tokens is None:
            max_tokens = max(self._scheduler.max_context - len(prompt), 1)
        seed = self._random.getrandbits(63) if params.seed is None else params.seed
        stop_ids = ending_ids(params, self.tokenizer)
        requests = [
            RequestState(
                request_id,
                index,
                prompt,
                max_tokens,
                slot_sampling(params, seed=(seed + index) % 2**63, stop_ids=stop_ids),
                wants_scores=params.prompt_logprobs is not None and index == 0,
            )
            for index in range(params.n)
        ]
        self._scheduler.add(requests)
        self._choices[request_id] = {r.index: Choice(r, params, self.tokenizer) for r in requests}
        self._arrival_s[request_id] = self._clock()

    def abort(self, request_id: str) -> list[ChoiceDelta]:
        """Ends what is left of a request; its blocks are free at once. Harmless if it has ended."""
        now_s = self._clock()
        choices = list(self._choices.get(request_id, {}).values())
        deltas = [choice.abort() for choice in choices]
        for choice, delta in zip(choices, deltas, strict=True):
            self._end(choice, delta, now_s)
        return deltas

    def step(self) -> list[ChoiceDelta]:
        """Queues what can be queued, then waits for the oldest step and says what it gave each request.

        When a rank was lost, waits until the group is whole again and queues anew what ran; nothing is new then.
        Raises GroupError (RankLostError) if it will not be; the engine is of no use any more.
        """
        try:
            return self._step()
        except RankLostError:
            self._recover()
            return []

    def _step(self) -> list[ChoiceDelta]:
        while len(self._steps_ahead) < MAX_STEPS_AHEAD and self._queue_step():
            pass
        if not self._steps_ahead:
            return []
        result = self.executor.collect()
        return self._postprocess(self._steps_ahead.popleft(), result)

    def close(self) -> None:
        self.executor.close()

    def _queue_step(self) -> bool:
        """Whether there was one to queue."""
        start_s = time.perf_counter()
        scheduled = self._schedule()
        if scheduled is None:
            return False
        self._steps_ahead.append(scheduled)
        self.executor.submit(scheduled.step)
        self.metrics.steps.inc()
        self.metrics.scheduling.inc(time.perf_counter() - start_s)
        return True

    def _recover(self) -> None:
        start_s = self._clock()
        self.executor.recover()
        replayed = replay(self._scheduler, self._steps_ahead)
        self._steps_ahead.clear()
        self.metrics.recovered(len(replayed), self._clock() - start_s)

    def _schedule(self) -> ScheduledStep | None:
        before = self._scheduler.num_preemptions
        scheduled = self._scheduler.schedule(self._clock())
        self.metrics.preemptions.inc(self._scheduler.num_preemptions - before)
        return scheduled

    def _postprocess(self, scheduled: ScheduledStep, result: StepResult) -> list[ChoiceDelta]:
        assert result.step_id == scheduled.step.step_id, "results come in the order of the steps"
        now_s = self._clock()
        self._scheduler.observe(scheduled.step, result)
        drafted = {of_slot.slot: of_slot for of_slot in result.drafted}
        deltas: list[ChoiceDelta] = []
        for row, samples in samples_of_rows(scheduled, result):
            request = row.request
            if request.finished or row.kind is RowKind.FILLER:
                continue
            choice = self._choices[request.request_id][request.index]
            if row.kind is RowKind.SCORE:
                choice.score(samples[0])
                continue
            of_slot = drafted.get(row.slot)
            self._scheduler.settle(row, len(samples), of_slot)
            if of_slot is not None:
                self.metrics.drafted(of_slot.num_drafts, len(samples) - 1)
            deltas += self._draw(choice, samples, now_s)
        return deltas

    def _draw(self, choice: Choice, samples: Sequence[Sampled], now_s: float) -> list[ChoiceDelta]:
        """Up to the one that ends the choice: what was drawn behind it is surplus."""
        deltas = []
        for sampled in samples:
            self._scheduler.collect(choice.request, sampled.token_id)
            delta = choice.draw(sampled)
            self._stamp(choice, now_s)
            deltas.append(delta)
            if delta.finish_reason is not None:
                self._end(choice, delta, now_s)
                break
        return deltas

    def _stamp(self, choice: Choice, now_s: float) -> None:
        self.metrics.generation_tokens.inc()
        if choice.last_token_s is not None:
            self.metrics.inter_token.observe(now_s - choice.last_token_s)
        elif choice.request.index == 0:
            self.metrics.prompt_tokens.inc(choice.request.num_prompt_tokens)
            self.metrics.time_to_first_token.observe(now_s - self._arrival_s[choice.request.request_id])
        choice.last_token_s = now_s

    def _end(self, choice: Choice, delta: ChoiceDelta, now_s: float) -> None:
        request_id = delta.request_id
        assert delta.finish_reason is not None
        self._scheduler.finish(choice.request, now_s)
        self.metrics.ended(delta.finish_reason, now_s - self._arrival_s[request_id])
        left = self._choices[request_id]
        del left[delta.index]
        if not left:
            del self._choices[request_id], self._arrival_s[request_id]

    def _check(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        if request_id in self._choices:
            raise ValueError(f"request_id must be new, got {request_id!r}")
        if not prompt:
            raise ValueError("prompt_token_ids must hold at least one token, got none")
        vocab_size = self.executor.vocab_size
        for name, ids in (
            ("prompt_token_ids", prompt),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", params.logit_bias),
        ):
            for token_id in ids:
                if not 0 <= token_id < vocab_size:
                    raise ValueError(f"{name} must hold token ids in [0, {vocab_size}), got {token_id}")
