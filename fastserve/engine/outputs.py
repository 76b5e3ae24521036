"""What a step gives a request, and the whole answer that these pieces add up to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fastserve.request import CompletionOutput, FinishReason, RequestOutput, TokenLogprobs


@dataclass(slots=True)
class ChoiceDelta:
    """What is new of one choice of a request."""

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # None: not asked for; else like token_ids
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # once, with the first choice's first token


@dataclass(slots=True)
class OutputBuilder:
    """Adds deltas up. `output` is one object that grows; `snapshot` is a copy that stays as it is."""

    output: RequestOutput
    num_unfinished: int = field(init=False)
    num_deltas: int = 0

    def __post_init__(self) -> None:
        self.num_unfinished = len(self.output.outputs)

    @classmethod
    def start(
        cls, request_id: str, prompt_token_ids: list[int], num_choices: int, *, prompt: str | None = None
    ) -> OutputBuilder:
        choices = [CompletionOutput(index, "", []) for index in range(num_choices)]
        return cls(RequestOutput(request_id, prompt, prompt_token_ids, choices, finished=False))

    def apply(self, delta: ChoiceDelta) -> None:
        self.num_deltas += 1
        choice = self.output.outputs[delta.index]
        choice.text += delta.text
        choice.token_ids += delta.token_ids
        if delta.logprobs is not None:
            choice.logprobs = (choice.logprobs or []) + delta.logprobs
        if delta.prompt_logprobs is not None:
            self.output.prompt_logprobs = delta.prompt_logprobs
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
            choice.stop_reason = delta.stop_reason
            self.num_unfinished -= 1
            self.output.finished = self.num_unfinished == 0

    def snapshot(self) -> RequestOutput:
        choices = [
            replace(
                choice,
                token_ids=list(choice.token_ids),
                logprobs=None if choice.logprobs is None else list(choice.logprobs),
            )
            for choice in self.output.outputs
        ]
        return replace(self.output, outputs=choices)
