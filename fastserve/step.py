"""What the control plane tells the ranks, and what comes back: one frozen Step per forward pass.

A Step holds *changes* since the last one. Ranks own each slot's position, block tables, last token, penalty counts
and sampling state, so that a steady decode step says no more than "the same slots again".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class SlotSampling:
    """A request's sampling parameters as a rank needs them."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    min_tokens: int
    stop_ids: tuple[int, ...]  # banned until min_tokens are out (the engine ends the request, not the rank)
    logit_bias: tuple[tuple[int, float], ...]  # ascending by token id
    num_logprobs: int  # -1: none; 0: of the sampled token alone


GREEDY = SlotSampling(
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    seed=0,
    min_tokens=0,
    stop_ids=(),
    logit_bias=(),
    num_logprobs=-1,
)  # the likeliest token, whatever was said before


MATCH_CLASSES = 4  # of the latest tokens with an earlier place in the text: 2, 3, 4 to 7, 8 and more tokens
MAX_DRAFTS = 15  # of a slot in a step
NO_DRAFTS = (0,) * MATCH_CLASSES
NO_LIMIT = 2**31 - 2


@dataclass(frozen=True, slots=True)
class SlotOpening:
    """A request takes a slot at position 0. After a preemption its chunks hold prompt and output again;
    num_prompt_tokens tells them apart (penalties, output index)."""

    slot: int
    num_prompt_tokens: int
    sampling: SlotSampling
    max_tokens: int = NO_LIMIT  # of the output: a decode after the last of them runs nothing
    speculates: bool = False  # it may get a draft budget


@dataclass(frozen=True, slots=True)
class DraftBudget:
    """From now on, each decode of `slot` runs up to so many drafts besides, by the class of the match."""

    slot: int
    num_drafts: tuple[int, ...]  # [MATCH_CLASSES]


@dataclass(frozen=True, slots=True)
class BlockGrant:
    """`block_id` becomes the next block of `slot` in the layer group `group`."""

    slot: int
    group: int
    block_id: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that a slot has not seen: part of a prompt (or of a recomputation). They follow its last position."""

    slot: int
    token_ids: tuple[int, ...]
    sample: bool  # the last chunk: draw a token from its last row
    num_scores: int = 0  # of these rows, the last num_scores report the logprob of their next token ...
    score_targets: tuple[int, ...] = ()  # ... which are these [num_scores]


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass. Rows are laid out as chunks in order, then decodes in order."""

    step_id: int
    closed: tuple[int, ...] = ()  # slots given up; applied first
    opened: tuple[SlotOpening, ...] = ()
    blocks: tuple[BlockGrant, ...] = ()
    budgets: tuple[DraftBudget, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    decodes: tuple[int, ...] = ()  # slots that run one token, the last they drew, and their drafts

    @property
    def num_tokens(self) -> int:
        """Rows without drafts, which the ranks make."""
        return sum(len(chunk.token_ids) for chunk in self.chunks) + len(self.decodes)


class Sampled(NamedTuple):
    """A token that a slot drew, or (scored) the logprob of a prompt token that was given."""

    slot: int
    token_id: int
    scored: bool
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class Drafted(NamedTuple):
    """What a slot drafted in a step: it drew one token more than it kept of these."""

    slot: int
    match_class: int
    num_drafts: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """Samples in row order: per chunk its scores, then its draw; then the decodes' draws.

    A decode has as many draws as drafts were right, and one; none after the request's last token.
    """

    step_id: int
    samples: tuple[Sampled, ...]
    elapsed_us: int
    drafted: tuple[Drafted, ...] = ()

    @property
    def num_drafts(self) -> int:
        """Rows that the ranks ran besides those of the step."""
        return sum(of_slot.num_drafts for of_slot in self.drafted)
