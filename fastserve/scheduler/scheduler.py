"""Iteration-level scheduling: who runs in the next step, with which KV blocks.

A step is filled in the policy's order: first one token of every request that decodes, then chunks of prompts,
then requests from the queue; beside decodes, prompts get so many rows that the step does not last too long. When a
decode finds no block, the last of the policy's order is preempted: its slot is closed, its blocks are freed, and it
goes back to the queue, to run prompt and output again as chunks (a draw depends on seed and position alone, so the
tokens that follow are the same).

A step may be scheduled while earlier ones are still under way: the ranks apply steps in order, so blocks and
slots freed here may be granted again at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from fastserve.cache.block_manager import BlockManager
from fastserve.errors import CapacityError, OverloadedError
from fastserve.scheduler.policy import Policy
from fastserve.scheduler.prompt_pace import PromptPace
from fastserve.scheduler.request_state import RequestState
from fastserve.scheduler.speculation import Speculation
from fastserve.scheduler.step_draft import SampledRow, ScheduledStep, StepDraft
from fastserve.step import NO_DRAFTS, Drafted, Step, StepResult

_STEP_IDS = 2**31  # a step id is a 32-bit word of the mailbox
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0
_DRAFT_SHARE = 8  # one in so many rows, decodes' own among them, while prompts wait for theirs
_FINISH_WEIGHT = 0.1  # of the newest interval between two ends, in their moving average


class Scheduler:
    def __init__(
        self,
        *,
        blocks: BlockManager,
        policy: Policy,
        max_num_tokens: int,
        max_num_seqs: int,
        max_samples: int,
        max_model_len: int,
        max_waiting: int,
        pace: PromptPace | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """max_samples: sampled rows that the executor allows in a step; bounds the requests that run, too."""
        num_slots = min(max_num_seqs, max_samples, max_num_tokens)
        if num_slots < 1:
            raise ValueError(f"max_num_seqs, max_samples and max_num_tokens must be >= 1, got {num_slots}")
        self.blocks = blocks
        self.num_preemptions = 0
        self._policy = policy
        self._pace = pace  # None: prompts take all rows that decodes leave
        self._speculation = speculation  # None: nobody drafts
        self._max_num_tokens = max_num_tokens
        self._max_samples = max_samples
        self._max_model_len = max_model_len
        self._max_waiting = max_waiting
        self._free_slots = list(range(num_slots))  # a heap: low slots first
        self._closed: list[int] = []  # slots to be closed by the next step
        self._running: list[RequestState] = []
        self._waiting: list[RequestState] = []
        self._restarted: list[RequestState] = []  # wait too, ahead of the others
        self._num_slots = num_slots
        self._next_arrival_idx = 0
        self._next_step_id = 0
        self._last_finish_s: float | None = None
        self._finish_interval_s = 0.0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._restarted)

    @property
    def started(self) -> tuple[RequestState, ...]:
        """Requests that run, or that ran before a restart and have not been let in again."""
        return (*self._restarted, *self._running)

    @property
    def max_context(self) -> int:
        """Tokens, prompt and output, that one request can have."""
        return min(self._max_model_len, self.blocks.capacity_tokens + 1)

    def room(self) -> int:
        """Requests that the queue still takes."""
        return max(self._max_waiting - self.num_waiting, 0)

    def check_fits(self, num_prompt_tokens: int, max_tokens: int) -> None:
        """Raises CapacityError for what can never run here."""
        total = num_prompt_tokens + max_tokens
        asked = f"{num_prompt_tokens} prompt tokens and max_tokens={max_tokens} make {total}"
        if total > self._max_model_len:
            raise CapacityError(f"{asked}, but the context holds {self._max_model_len}")
        if total > self.max_context:
            capacity = self.blocks.capacity_tokens
            raise CapacityError(
                f"{asked}, but the KV cache holds {capacity} ({self.blocks.block_size} a block)"
            )

    def add(self, requests: Sequence[RequestState]) -> None:
        """Queues all of `requests` (the choices of one) or, with CapacityError or OverloadedError, none."""
        for request in requests:
            self.check_fits(request.num_prompt_tokens, request.max_tokens)
        if len(requests) > self.room():
            raise OverloadedError(
                f"{self.num_waiting} requests wait already, of at most {self._max_waiting}",
                retry_after_s=self._retry_after_s(len(requests)),
            )
        for request in requests:
            request.arrival_idx = self._next_arrival_idx
            self._next_arrival_idx += 1
        self._waiting.extend(requests)

    def schedule(self, now_s: float) -> ScheduledStep | None:
        """The next step, or None if nothing can run before results are collected."""
        draft = StepDraft(max_num_tokens=self._max_num_tokens, max_samples=self._max_samples)
        order = self._policy.order(self._running, now_s)
        self._add_decodes(order, draft)
        if self._pace is not None and not draft.is_empty:
            num_decode_rows = self._max_num_tokens - draft.tokens_left
            draft.tokens_left = min(draft.tokens_left, self._pace.num_rows(num_decode_rows))
        for request in order:
            if request.slot is not None and request.is_prefilling and draft.tokens_left:
                draft.add_chunk(request)
        self._admit(now_s, draft)
        if draft.is_empty:
            return None
        scheduled = draft.finish(self._next_step_id, tuple(self._closed))
        self._closed.clear()
        self._next_step_id = (self._next_step_id + 1) % _STEP_IDS
        for request in [request for request in self._running if request.has_drawn_all]:
            self._release(request)  # it ends here whatever it draws: the next step may use its blocks
        return scheduled

    def observe(self, step: Step, result: StepResult) -> None:
        """A step came back."""
        if self._pace is not None:
            self._pace.observe_step(step, result)
        if self._speculation is not None:
            self._speculation.observe_step(step, result)

    def settle(self, row: SampledRow, num_tokens: int, drafted: Drafted | None = None) -> None:
        """A row that drew came back, with so many tokens, which are collected next."""
        request = row.request
        request.num_under_way -= 1
        request.num_drafts_under_way -= row.max_drafts
        if request.slot is not None:  # the same as then: while draws are under way nobody is let in again
            request.num_computed -= 1 + row.max_drafts - num_tokens
        if self._speculation is not None:
            self._speculation.observe(request, drafted, num_tokens)

    def collect(self, request: RequestState, token_id: int) -> None:
        """A token that `request` drew."""
        request.output_token_ids.append(token_id)

    def restart(self, requests: Sequence[RequestState]) -> None:
        """The ranks lost every slot: all that ran waits again. `requests`, of which no draw may be under way, run
        first, in this order.
        """
        for slot in {request.slot for request in self._running if request.slot is not None}:
            self.blocks.free(slot)
        restarted = set(requests)
        assert restarted.issuperset(self.started)
        self._running.clear()
        self._closed.clear()
        self._free_slots = list(range(self._num_slots))
        self._waiting = [request for request in self._waiting if request not in restarted]
        self._restarted = list(requests)
        for request in requests:
            request.leave_slot()

    def finish(self, request: RequestState, now_s: float) -> None:
        """`request` ended or was aborted: frees what it holds. Its draws under way are to be discarded."""
        assert not request.finished, f"request {request.request_id} ends twice"
        request.finished = True
        if request.slot is not None:
            self._release(request)
        else:
            self._forget_waiting(request)
        if self._last_finish_s is not None:
            interval_s = now_s - self._last_finish_s
            self._finish_interval_s += _FINISH_WEIGHT * (interval_s - self._finish_interval_s)
        self._last_finish_s = now_s

    def _add_decodes(self, order: list[RequestState], draft: StepDraft) -> None:
        candidates = list(order)  # the last is preempted first
        decoding = [request for request in order if not request.is_prefilling]
        wanted = self._draft_budgets(decoding)
        draft.drafts_left = self._draft_rows(len(decoding))
        for request, of_request in zip(decoding, wanted, strict=True):
            if request.slot is None:
                continue
            budgets = self._fit_drafts(request, of_request, draft)
            num_positions = request.num_positions_after(max(budgets))
            if request.num_drafts_under_way and not self.blocks.can_grant(request.slot, num_positions):
                continue  # once it is known which of them were right, it may need no block
            while request.slot is not None and not self.blocks.can_grant(request.slot, num_positions):
                self._preempt(candidates.pop())
            if request.slot is not None:
                draft.blocks += self.blocks.grant(request.slot, num_positions)
                draft.add_decode(request, budgets)

    def _draft_budgets(self, decoding: list[RequestState]) -> list[tuple[int, ...]]:
        if self._speculation is None:
            return [NO_DRAFTS] * len(decoding)
        return self._speculation.budgets(decoding)

    def _draft_rows(self, num_decoding: int) -> int:
        """What drafts may take of a step: a row that they get and do not use is nobody's."""
        num_prompts = len(self._running) - num_decoding + min(self.num_waiting, len(self._free_slots))
        num_tokens = self._max_num_tokens // _DRAFT_SHARE if num_prompts else self._max_num_tokens
        return max(min(num_tokens - num_decoding, self._max_samples - num_decoding - num_prompts), 0)

    def _fit_drafts(
        self, request: RequestState, budgets: tuple[int, ...], draft: StepDraft
    ) -> tuple[int, ...]:
        """As much of `budgets` as the step has rows for, if there are blocks: nobody is preempted for a guess."""
        assert request.slot is not None
        if budgets == NO_DRAFTS:
            return budgets
        if max(budgets) > draft.drafts_left:
            budgets = tuple(min(budget, draft.drafts_left) for budget in budgets)
        if not self.blocks.can_grant(request.slot, request.num_positions_after(max(budgets))):
            return NO_DRAFTS
        return budgets

    def _admit(self, now_s: float, draft: StepDraft) -> None:
        if not (self.num_waiting and self._free_slots and draft.tokens_left and draft.samples_left):
            return
        for request in (*self._restarted, *self._policy.order(self._waiting, now_s)):
            if not (self._free_slots and draft.tokens_left and draft.samples_left):
                return
            # Preempted with a draw under way: its tokens are not all known yet. Nobody overtakes it.
            if request.num_under_way or not self._open(request, draft):
                return
            draft.add_chunk(request)

    def _open(self, request: RequestState, draft: StepDraft) -> bool:
        slot = self._free_slots[0]
        # All blocks of the prompt and of the first decode at once, so that only decodes can run out of them;
        # and every running request keeps a block to grow into, or this one would soon be preempted again.
        num_positions = min(request.num_known + 1, request.max_positions)
        if self.blocks.blocks_needed(slot, num_positions) + len(self._running) > self.blocks.num_free:
            return False
        heapq.heappop(self._free_slots)
        self._forget_waiting(request)
        self._running.append(request)
        request.slot = slot
        request.num_computed = 0
        request.num_to_prefill = request.num_known
        draft.open(request, speculates=self._speculation is not None)
        draft.blocks += self.blocks.grant(slot, num_positions)
        return True

    def _forget_waiting(self, request: RequestState) -> None:
        for queue in (self._restarted, self._waiting):
            if request in queue:
                queue.remove(request)

    def _preempt(self, request: RequestState) -> None:
        self._release(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.append(request)

    def _release(self, request: RequestState) -> None:
        assert request.slot is not None
        self.blocks.free(request.slot)
        heapq.heappush(self._free_slots, request.slot)
        self._closed.append(request.slot)
        self._running.remove(request)
        request.leave_slot()

    def _retry_after_s(self, num_requests: int) -> float:
        """As long as it lately took for so many requests to end."""
        return min(max(num_requests * self._finish_interval_s, _MIN_RETRY_S), _MAX_RETRY_S)
