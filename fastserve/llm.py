"""The offline entry: prompts in, answers out, in this process and on the caller's thread."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self, cast

from fastserve.config import DEFAULT_MODEL, EngineConfig
from fastserve.engine.build import build_engine
from fastserve.engine.deferred_interrupt import DeferredInterrupt
from fastserve.engine.engine import Engine
from fastserve.engine.outputs import OutputBuilder
from fastserve.engine.text import EngineTokenizer
from fastserve.request import RequestOutput, SamplingParams

Prompt = str | list[int]
Message = dict[str, str]


class LLM:
    """A model on its devices. One thread at a time; `close` it, or use it in a `with`.

        with LLM("smollm2-135m", devices=2) as llm:
            print(llm.generate("The capital of France is")[0].outputs[0].text)

    `options` are the other fields of EngineConfig. Raises ValueError for wrong options, else FastServeError.
    """

    def __init__(self, model: str = DEFAULT_MODEL, devices: int | str = 1, **options: Any) -> None:
        self._engine = build_engine(EngineConfig(model=model, devices=devices, **options))
        self._builders: dict[str, OutputBuilder] = {}  # of requests under way
        self._ids = count()

    @classmethod
    def from_engine(cls, engine: Engine) -> Self:
        """Over an engine that exists; it is closed with this."""
        llm = cls.__new__(cls)
        llm._engine = engine
        llm._builders = {}
        llm._ids = count()
        return llm

    @property
    def tokenizer(self) -> EngineTokenizer:
        return self._engine.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answers to texts or to lists of token ids, in their order; one set of parameters, or one each.

        Special tokens written in a text are text. A prompt refused (ValueError, CapacityError) refuses all.
        """
        single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        listed = [cast(Prompt, prompts)] if single else list(cast(Sequence[Prompt], prompts))
        return self._run([self._encode(prompt) for prompt in listed], sampling_params)

    def chat(
        self,
        messages: list[Message] | list[list[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """The assistant's answers to one conversation or several. Raises ValueError without a template."""
        single = bool(messages) and isinstance(messages[0], dict)
        listed = cast(list[list[Message]], [messages] if single else messages)
        return self._run([(None, self._render(conversation)) for conversation in listed], sampling_params)

    def stream(
        self, prompt: Prompt | list[Message], sampling_params: SamplingParams | None = None
    ) -> Generator[RequestOutput, None, None]:
        """The answer so far, again and again until it is finished; closing the iterator aborts the request.

        prompt: a text, token ids, or a conversation. It is looked at, and refused, when the iteration starts.
        """
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            text, ids = None, self._render(prompt)
        else:
            text, ids = self._encode(cast(Prompt, prompt))
        request_id = self._add(text, ids, sampling_params or SamplingParams())
        builder = self._builders[request_id]
        num_seen = 0
        try:
            while True:
                while builder.num_deltas == num_seen:  # other calls may have run its steps meanwhile
                    with DeferredInterrupt():
                        self._pump()
                num_seen = builder.num_deltas
                yield builder.snapshot()
                if builder.output.finished and builder.num_deltas == num_seen:
                    return
        finally:
            self._drop([request_id])

    def close(self) -> None:
        """Ends the ranks; again is harmless."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt, add_special=True)
        return None, list(prompt)

    def _render(self, messages: list[Message]) -> list[int]:
        template = self._engine.chat_template
        if template is None:
            raise ValueError(
                "messages need a model with a chat template, and this one has none: it is a base model"
            )
        return template.render_ids(messages, self._engine.tokenizer)  # type: ignore[no-any-return]

    def _add(self, text: str | None, ids: list[int], params: SamplingParams) -> str:
        request_id = f"llm-{next(self._ids)}"
        self._engine.add_request(request_id, ids, params)
        self._builders[request_id] = OutputBuilder.start(request_id, ids, params.n, prompt=text)
        return request_id

    def _run(
        self,
        prompts: list[tuple[str | None, list[int]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[RequestOutput]:
        listed = _one_each(sampling_params, len(prompts))
        started: list[str] = []
        outputs: dict[str, RequestOutput] = {}
        try:
            with DeferredInterrupt() as interrupt:
                for (text, ids), params in zip(prompts, listed, strict=True):
                    while self._engine.room() < params.n and self._engine.has_work:
                        self._pump()
                        interrupt.settle()
                    started.append(self._add(text, ids, params))
                    outputs[started[-1]] = self._builders[started[-1]].output
                while not all(output.finished for output in outputs.values()):
                    self._pump()
                    interrupt.settle()
        finally:
            self._drop(started)
        return [outputs[request_id] for request_id in started]

    def _pump(self) -> None:
        """One step, for every request under way; to be called where Ctrl-C waits for its end."""
        for delta in self._engine.step():
            self._builders[delta.request_id].apply(delta)

    def _drop(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._engine.abort(request_id)
            del self._builders[request_id]


def _one_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise ValueError(
            f"sampling_params must be one, or one for each of {num_prompts} prompts, got {len(params)}"
        )
    return list(params)
