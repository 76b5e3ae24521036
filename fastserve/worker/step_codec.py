"""Steps and their results as the words of a mailbox message; csrc/program/slots.h describes the layout."""

from __future__ import annotations

import struct
from array import array

from fastserve.request import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_TOKEN_IDS
from fastserve.step import MATCH_CLASSES, Drafted, Sampled, SlotOpening, Step, StepResult

SAME_DECODES = -1
WORD_MASK = 0xFFFFFFFF
WORD_BYTES = 4
MODEL_STOP_IDS = 64  # ids that end a text by the model's own metadata: a handful
_RESULT = struct.Struct("=4i")  # the step's id, its time in us, slots that drafted, samples
_DRAFTED = struct.Struct("=3i")
_SAMPLE = struct.Struct(
    "=3if2i"
)  # slot, token, whether it is a score, logprob, rank, number of the likeliest
OPENING_WORDS = 17 + MAX_STOP_TOKEN_IDS + MODEL_STOP_IDS + 2 * MAX_LOGIT_BIAS


def mailbox_capacity(*, num_slots: int, max_tokens: int, max_samples: int, num_blocks: int) -> int:
    """Bytes of a mailbox that takes the largest step, and the largest result, twice: every slot closed, opened with
    every option at its limit, and run, every block granted (a prompt gets all of its own at once).
    """
    slot_words = 1 + OPENING_WORDS + (1 + MATCH_CLASSES) + 4 + 1  # closed, opened, budget, chunk, decode
    step = 7 + num_slots * slot_words + 3 * num_blocks + max_tokens + max_samples
    result = 4 + 3 * num_slots + max_samples * (6 + 2 * MAX_LOGPROBS)
    return 2 * (max(step, result) + 4) * WORD_BYTES // 64 * 64 + 64


def _bits(value: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def _signed(word: int) -> int:
    word &= WORD_MASK
    return word - (1 << 32) if word >> 31 else word


class StepEncoder:
    """Remembers the last step's decodes, so that a step that runs the same slots again does not repeat them."""

    def __init__(self) -> None:
        self._decodes: tuple[int, ...] = ()

    def encode(self, step: Step) -> bytes:
        same = step.decodes == self._decodes
        self._decodes = step.decodes
        words = array("i")
        words.extend((step.step_id, len(step.closed), len(step.opened), len(step.blocks)))
        words.extend((len(step.budgets), len(step.chunks)))
        words.append(SAME_DECODES if same else len(step.decodes))
        words.extend(step.closed)
        for opening in step.opened:
            self._encode_opening(opening, words)
        for grant in step.blocks:
            words.extend((grant.slot, grant.group, grant.block_id))
        for budget in step.budgets:
            words.append(budget.slot)
            words.extend(budget.num_drafts)
        for chunk in step.chunks:
            words.extend((chunk.slot, len(chunk.token_ids), int(chunk.sample), chunk.num_scores))
            words.extend(chunk.token_ids)
            words.extend(chunk.score_targets)
        if not same:
            words.extend(step.decodes)
        return words.tobytes()

    @staticmethod
    def _encode_opening(opening: SlotOpening, words: array[int]) -> None:
        s = opening.sampling
        words.extend((opening.slot, opening.num_prompt_tokens, opening.max_tokens, int(opening.speculates)))
        words.extend((_bits(s.temperature), s.top_k))
        words.extend((_bits(s.top_p), _bits(s.min_p), _bits(s.repetition_penalty)))
        words.extend((_bits(s.presence_penalty), _bits(s.frequency_penalty)))
        words.extend((_signed(s.seed), _signed(s.seed >> 32), s.min_tokens, s.num_logprobs))
        words.extend((len(s.stop_ids), len(s.logit_bias)))
        words.extend(s.stop_ids)
        words.extend(token_id for token_id, _ in s.logit_bias)
        words.extend(_bits(bias) for _, bias in s.logit_bias)


def decode_result(message: bytes) -> StepResult:
    """The result that a rank wrote; the rank is ours, so a malformed one is our own fault."""
    step_id, elapsed_us, num_drafted, num_samples = _RESULT.unpack_from(message)
    begin, at = _RESULT.size, _RESULT.size + num_drafted * _DRAFTED.size
    drafted = tuple(Drafted(*words) for words in _DRAFTED.iter_unpack(message[begin:at]))
    samples = []
    for _ in range(num_samples):
        slot, token_id, scored, logprob, rank, num_top = _SAMPLE.unpack_from(message, at)
        at += _SAMPLE.size
        top: tuple[tuple[int, float], ...] = ()
        if num_top:
            words = struct.unpack_from(f"={num_top}i{num_top}f", message, at)
            top = tuple(zip(words[:num_top], words[num_top:], strict=True))
            at += len(words) * WORD_BYTES
        samples.append(Sampled(slot, token_id, scored != 0, logprob, rank, top))
    assert at == len(message), (at, len(message))
    return StepResult(step_id, tuple(samples), elapsed_us, drafted)
