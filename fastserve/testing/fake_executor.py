"""Ranks without a model: checks every rule of the step protocol, and draws from what a slot has seen."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastserve.errors import RankLostError
from fastserve.step import NO_DRAFTS, Chunk, Drafted, Sampled, SlotSampling, Step, StepResult
from fastserve.worker.protocol import RankTimes

BLOCK_SIZE = 16


def next_token(history: Sequence[int], sampling: SlotSampling, vocab_size: int) -> int:
    """What a slot draws after `history`: like a real draw, a function of tokens, position and seed alone."""
    words = ",".join(map(str, (*history, sampling.seed if sampling.temperature else "greedy")))
    return zlib.crc32(words.encode()) % vocab_size


@dataclass
class Slot:
    num_prompt_tokens: int
    sampling: SlotSampling
    max_tokens: int
    speculates: bool
    budgets: tuple[int, ...] = NO_DRAFTS
    history: list[int] = field(default_factory=list)  # tokens whose KV is stored
    last_token: int | None = None
    blocks: list[list[int]] = field(default_factory=list)  # per group


class FakeExecutor:
    def __init__(
        self,
        *,
        num_blocks: tuple[int, ...] = (64,),
        max_num_tokens: int = 512,
        max_samples: int = 64,
        max_slots: int = 64,
        vocab_size: int = 256,
        max_model_len: int = 1024,
        makes_drafts: bool = False,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = BLOCK_SIZE
        self.max_samples = max_samples
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.makes_drafts = makes_drafts
        self.max_num_tokens = max_num_tokens
        self.max_slots = max_slots
        self.script: dict[int, int] = {}  # draws to come, by output index; overrides next_token
        self.steps: list[Step] = []
        self.drafted: list[Drafted] = []
        self.slots: dict[int, Slot] = {}
        self.max_ahead = 0
        self.lost: str | None = None  # for good
        self.rank_times: list[RankTimes] = []
        self.losses: set[tuple[str, int]] = set()  # ("submit" or "collect", the step) at which a rank is lost
        self.num_recoveries = 0
        self.closed = False
        self._is_broken = False
        self._next_step_id = 0
        self._owner_of_block: dict[tuple[int, int], int] = {}
        self._results: deque[StepResult] = deque()

    def submit(self, step: Step) -> None:
        assert step.step_id == self._next_step_id
        self._next_step_id += 1
        self._check_alive("submit", step.step_id)
        self.steps.append(step)
        # Ranks apply steps in order, so running one at submission shows the same as running it later.
        self._results.append(self._run(step))
        self.max_ahead = max(self.max_ahead, len(self._results))

    def collect(self) -> StepResult:
        self._check_alive("collect", self._results[0].step_id if self._results else -1)
        return self._results.popleft()

    def recover(self) -> None:
        """Fresh ranks: no slot is open, no block is held, no result is to come."""
        assert self._is_broken, "recover comes after a RankLostError"
        self._check_lost()
        self._is_broken = False
        self.num_recoveries += 1
        self.slots.clear()
        self._owner_of_block.clear()
        self._results.clear()

    def close(self) -> None:
        self.closed = True

    @property
    def failure(self) -> RankLostError | None:
        return None if self.lost is None else RankLostError(self.lost)

    def _check_lost(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _check_alive(self, at: str, step_id: int) -> None:
        if self.lost is not None or (at, step_id) in self.losses:
            self.losses.discard((at, step_id))
            self._is_broken = True
        self._check_lost()
        if self._is_broken:
            raise RankLostError(f"lost at {at} {step_id}")

    def _run(self, step: Step) -> StepResult:
        for slot in step.closed:
            self._close(slot)
        for opening in step.opened:
            assert opening.slot not in self.slots, "a slot is opened once"
            assert 0 <= opening.slot < self.max_slots
            blocks: list[list[int]] = [[] for _ in self.num_blocks]
            self.slots[opening.slot] = Slot(
                opening.num_prompt_tokens,
                opening.sampling,
                opening.max_tokens,
                opening.speculates,
                blocks=blocks,
            )
        for grant in step.blocks:
            key = (grant.group, grant.block_id)
            assert 0 <= grant.block_id < self.num_blocks[grant.group]
            assert key not in self._owner_of_block, "no block lies in two slots"
            self._owner_of_block[key] = grant.slot
            self.slots[grant.slot].blocks[grant.group].append(grant.block_id)
        for budget in step.budgets:
            assert self.slots[budget.slot].speculates, "a budget is of a slot that speculates"
            self.slots[budget.slot].budgets = budget.num_drafts
        num_drafts = sum(max(self.slots[slot].budgets) for slot in step.decodes)
        num_sampled = len(step.decodes) + sum(chunk.num_scores + chunk.sample for chunk in step.chunks)
        assert step.num_tokens > 0
        assert step.num_tokens + num_drafts <= self.max_num_tokens
        assert num_sampled + num_drafts <= self.max_samples
        used = [chunk.slot for chunk in step.chunks] + list(step.decodes)
        assert len(used) == len(set(used)), "a slot runs once in a step"
        samples = [sample for chunk in step.chunks for sample in self._run_chunk(chunk)]
        drafted = [found for slot in step.decodes if (found := self._draft(slot)) is not None]
        self.drafted += drafted
        num_right = {found.slot: self._num_right(found) for found in drafted}
        for slot in step.decodes:
            samples += self._decode(slot, num_right.get(slot, 0))
        num_rows = step.num_tokens + sum(found.num_drafts for found in drafted)
        return StepResult(step.step_id, tuple(samples), 1000 + 50 * num_rows, tuple(drafted))

    def _close(self, slot: int) -> None:
        state = self.slots.pop(slot)
        for group, block_ids in enumerate(state.blocks):
            for block_id in block_ids:
                del self._owner_of_block[group, block_id]

    def _store(self, slot: int, token_id: int) -> None:
        state = self.slots[slot]
        assert 0 <= token_id < self.vocab_size
        state.history.append(token_id)
        assert len(state.history) <= self.max_model_len
        for block_ids in state.blocks:
            assert len(state.history) <= len(block_ids) * BLOCK_SIZE, (
                "a block comes before its positions are used"
            )

    def _run_chunk(self, chunk: Chunk) -> list[Sampled]:
        state = self.slots[chunk.slot]
        assert state.last_token is None, "chunks come before decodes"
        assert chunk.token_ids
        assert chunk.num_scores == len(chunk.score_targets) <= len(chunk.token_ids)
        for token_id in chunk.token_ids:
            self._store(chunk.slot, token_id)
        first = len(state.history) - chunk.num_scores
        samples = [
            Sampled(chunk.slot, target, True, -float(first + i), 1, ((target, -0.5), (1, -0.75)))
            for i, target in enumerate(chunk.score_targets)
        ]
        if chunk.sample:
            assert len(state.history) >= state.num_prompt_tokens, "a draw comes after the whole prompt"
            samples.append(self._draw(chunk.slot))
        return samples

    def _draft(self, slot: int) -> Drafted | None:
        """Of any class, often none at all: as a text has it."""
        state = self.slots[slot]
        match_class = zlib.crc32(bytes(state.history[-3:])) % (len(state.budgets) + 1)
        draws_left = state.max_tokens - (len(state.history) + 1 - state.num_prompt_tokens) - 1
        if match_class == len(state.budgets) or draws_left < 1 or not state.budgets[match_class]:
            return None
        num_drafts = min(state.budgets[match_class], draws_left)
        for block_ids in state.blocks:
            num_positions = len(state.history) + 1 + num_drafts
            assert num_positions <= len(block_ids) * BLOCK_SIZE, "drafts have blocks too"
        return Drafted(slot, match_class, num_drafts)

    def _num_right(self, drafted: Drafted) -> int:
        """The longer the match, the more of the drafts."""
        right = zlib.crc32(bytes(self.slots[drafted.slot].history[-5:])) % (2 + 2 * drafted.match_class)
        return min(right, drafted.num_drafts)

    def _decode(self, slot: int, num_right: int) -> list[Sampled]:
        state = self.slots[slot]
        if len(state.history) + 1 - state.num_prompt_tokens >= state.max_tokens:
            return []
        samples = []
        for _ in range(1 + num_right):
            assert state.last_token is not None, "a decode comes after a draw"
            self._store(slot, state.last_token)
            samples.append(self._draw(slot))
        return samples

    def _draw(self, slot: int) -> Sampled:
        state = self.slots[slot]
        output_idx = len(state.history) - state.num_prompt_tokens
        token_id = self.script.get(output_idx)
        if token_id is None:
            token_id = next_token(state.history, state.sampling, self.vocab_size)
        state.last_token = token_id
        return Sampled(slot, token_id, False, -1.0, 1, ((token_id, -1.0), (2, -2.0), (3, -3.0)))


class FakeTokenizer:
    """Token i is byte i; 0 ends a text."""

    def __init__(self, vocab_size: int = 256) -> None:
        self.vocab_size = vocab_size
        self.eos_ids = (0,)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return bytes(ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def token_text(self, token_id: int) -> str:
        return bytes([token_id]).decode(errors="replace")

    def is_special(self, token_id: int) -> bool:
        return token_id in self.eos_ids
