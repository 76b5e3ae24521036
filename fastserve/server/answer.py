"""Runs a request's prompts and puts the answers together: whole, or chunk by chunk."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

import msgspec

from fastserve.request import RequestOutput, SamplingParams
from fastserve.server import sse
from fastserve.server.openai import Answer, ChatChoice, CompletionChoice, Usage
from fastserve.server.render import Renderer, Sent
from fastserve.server.service import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A checked request: what to run and how to write it down."""

    id: str
    created: int
    model: str
    prompts: list[list[int]]
    params: SamplingParams
    renderer: Renderer
    include_usage: bool  # of a stream: in a last chunk of its own
    counts_output: bool = True  # False: the one token that was drawn is not part of the answer

    def answer(self, kind: str, choices: list[CompletionChoice] | list[ChatChoice]) -> Answer:
        return Answer(id=self.id, object=kind, created=self.created, model=self.model, choices=choices)

    def usage(self, outputs: list[RequestOutput]) -> Usage:
        num_prompt = sum(map(len, self.prompts))
        num_output = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
        num_output = num_output if self.counts_output else 0
        return Usage(num_prompt, num_output, num_prompt + num_output)


async def whole(call: Call, service: Service) -> bytes:
    """The finished answer as JSON. The first prompt that fails cancels the others."""
    tasks = []
    try:
        async with asyncio.TaskGroup() as group:
            for idx in range(len(call.prompts)):
                tasks.append(group.create_task(_last(call, idx, service)))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    outputs = [task.result() for task in tasks]
    choices = [
        call.renderer.whole(prompt_idx * call.params.n + choice.index, output, choice)
        for prompt_idx, output in enumerate(outputs)
        for choice in output.outputs
    ]
    answer = call.answer(call.renderer.whole_object, choices)  # type: ignore[arg-type]
    answer.usage = call.usage(outputs)
    return msgspec.json.encode(answer)


async def _last(call: Call, prompt_idx: int, service: Service) -> RequestOutput:
    last: RequestOutput | None = None
    async with aclosing(_generate(call, prompt_idx, service)) as outputs:
        async for output in outputs:
            last = output
    assert last is not None
    assert last.finished
    return last


def _generate(call: Call, prompt_idx: int, service: Service) -> AsyncGenerator[RequestOutput, None]:
    request_id = call.id if len(call.prompts) == 1 else f"{call.id}-{prompt_idx}"
    return service.generate(call.prompts[prompt_idx], call.params, request_id)


async def chunks(call: Call, service: Service) -> AsyncGenerator[bytes, None]:
    """Framed events, several at a time if the engine is ahead; [DONE] comes last."""
    sent: defaultdict[int, Sent] = defaultdict(Sent)
    latest: dict[int, RequestOutput] = {}
    async with AsyncExitStack() as stack:
        streams = [_generate(call, idx, service) for idx in range(len(call.prompts))]
        for stream in streams:
            await stack.enter_async_context(aclosing(stream))
        merged = await stack.enter_async_context(aclosing(_merged(streams)))
        async for prompt_idx, output in merged:
            latest[prompt_idx] = output
            choices = _new_choices(call, prompt_idx, output, sent)
            if choices:
                yield b"".join(_chunk(call, [choice]) for choice in choices)
    end = b""
    if call.include_usage:
        end = _chunk(call, [], call.usage(list(latest.values())))
    yield end + sse.DONE


def _new_choices(
    call: Call, prompt_idx: int, request: RequestOutput, sent: defaultdict[int, Sent]
) -> list[CompletionChoice | ChatChoice]:
    found: list[CompletionChoice | ChatChoice] = []
    for output in request.outputs:
        index = prompt_idx * call.params.n + output.index
        past = sent[index]
        if not past.opened:
            past.opened = True
            opening = call.renderer.opening(index, request, past)
            if opening is not None:
                found.append(opening)
        has_logprobs = len(output.logprobs or ()) > past.num_tokens
        ends = output.finish_reason is not None and not past.finished
        if len(output.text) > past.num_chars or has_logprobs or ends:
            found.append(call.renderer.delta(index, request, output, past))
            past.num_chars, past.finished = len(output.text), ends
            past.num_tokens = len(output.logprobs or ())
    return found


def _chunk(call: Call, choices: list[CompletionChoice | ChatChoice], usage: Usage | None = None) -> bytes:
    answer = call.answer(call.renderer.chunk_object, choices)  # type: ignore[arg-type]
    if call.include_usage:
        answer.usage = usage
    return sse.event(msgspec.json.encode(answer))


async def _merged(
    streams: list[AsyncGenerator[RequestOutput, None]],
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Outputs of all streams as they come, at most one of each ahead of the reader."""
    if len(streams) == 1:
        async for output in streams[0]:
            yield 0, output
        return
    pending = {asyncio.ensure_future(_next(stream)): idx for idx, stream in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=pending.__getitem__):
                idx = pending.pop(task)
                item = task.result()
                if item is not None:
                    pending[asyncio.ensure_future(_next(streams[idx]))] = idx
                    yield idx, item
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _next(stream: AsyncIterator[RequestOutput]) -> RequestOutput | None:
    return await anext(stream, None)
