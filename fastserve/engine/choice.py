"""One choice of a request while it is generated: from drawn ids to text, and when it ends."""

from __future__ import annotations

from collections.abc import Collection

from fastserve.engine.detokenizer import Detokenizer
from fastserve.engine.outputs import ChoiceDelta
from fastserve.engine.stop_strings import StopStrings
from fastserve.engine.text import EngineTokenizer
from fastserve.request import FinishReason, Logprob, SamplingParams, TokenLogprobs
from fastserve.scheduler.request_state import RequestState
from fastserve.step import Sampled, SlotSampling


def ending_ids(params: SamplingParams, tokenizer: EngineTokenizer) -> frozenset[int]:
    """Tokens that end a choice."""
    ids = frozenset(params.stop_token_ids)
    return ids if params.ignore_eos else ids | frozenset(tokenizer.eos_ids)


def slot_sampling(params: SamplingParams, *, seed: int, stop_ids: Collection[int]) -> SlotSampling:
    wanted = [count for count in (params.logprobs, params.prompt_logprobs) if count is not None]
    return SlotSampling(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=seed,
        min_tokens=params.min_tokens,
        stop_ids=tuple(sorted(stop_ids)) if params.min_tokens else (),
        logit_bias=tuple(sorted(params.logit_bias.items())),
        num_logprobs=max(wanted, default=-1),
    )


class Choice:
    """Takes a choice's samples in order and says what they add to the answer."""

    def __init__(self, request: RequestState, params: SamplingParams, tokenizer: EngineTokenizer) -> None:
        self.request = request
        self.last_token_s: float | None = None  # when its newest token came, for the metrics
        self._params = params
        self._tokenizer = tokenizer
        self._ending_ids = ending_ids(params, tokenizer)
        self._detokenizer = Detokenizer(tokenizer, skip_special=params.skip_special_tokens)
        self._stop = StopStrings(params.stop, include_stop=params.include_stop_str_in_output)
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None
        if request.wants_scores:
            self._prompt_logprobs = [None]  # nothing precedes the first token

    def score(self, sampled: Sampled) -> None:
        """The next prompt token's logprob came."""
        assert self._prompt_logprobs is not None
        assert self._params.prompt_logprobs is not None
        self._prompt_logprobs.append(self._token_logprobs(sampled, self._params.prompt_logprobs))

    def draw(self, sampled: Sampled) -> ChoiceDelta:
        """The next token came (the scheduler knows it already)."""
        token_id = sampled.token_id
        num_tokens = len(self.request.output_token_ids)
        delta = self._delta("")
        delta.token_ids.append(token_id)
        if self._params.logprobs is not None:
            delta.logprobs = [self._token_logprobs(sampled, self._params.logprobs)]
        if token_id in self._ending_ids and num_tokens > self._params.min_tokens:
            named = token_id in self._params.stop_token_ids
            text = self._detokenizer.push(token_id) if self._params.include_stop_str_in_output else ""
            return self._end(delta, self._show(text, num_tokens), "stop", token_id if named else None)
        delta.text = self._show(self._detokenizer.push(token_id), num_tokens)
        if self._stop.matched is not None:
            delta.finish_reason, delta.stop_reason = "stop", self._stop.matched
        elif num_tokens >= self.request.max_tokens:
            return self._end(delta, delta.text, "length", None)
        return delta

    def abort(self) -> ChoiceDelta:
        return self._end(self._delta(""), "", "abort", None)

    def _delta(self, text: str) -> ChoiceDelta:
        request = self.request
        delta = ChoiceDelta(request.request_id, request.index, text, [])
        delta.prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        return delta

    def _show(self, text: str, num_tokens: int) -> str:
        """What may be shown of `text`; stop strings count from the first token after min_tokens."""
        return text if num_tokens <= self._params.min_tokens else self._stop.push(text)

    def _end(
        self, delta: ChoiceDelta, text: str, reason: FinishReason, stop_reason: int | None
    ) -> ChoiceDelta:
        """Ends the text with what was held back: the bytes of a character, the start of a stop string."""
        delta.text = text + self._stop.push(self._detokenizer.flush()) + self._stop.flush()
        delta.finish_reason, delta.stop_reason = reason, stop_reason
        return delta

    def _token_logprobs(self, sampled: Sampled, num_top: int) -> TokenLogprobs:
        text = self._tokenizer.token_text
        own = Logprob(sampled.token_id, sampled.logprob, sampled.rank, text(sampled.token_id))
        top = tuple(
            Logprob(token_id, logprob, rank, text(token_id))
            for rank, (token_id, logprob) in enumerate(sampled.top[:num_top], start=1)
        )
        return TokenLogprobs(own, top)
