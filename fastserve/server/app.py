"""The routes: what comes in is checked, run by the service and written down; every failure leaves as JSON."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastserve.server import answer, prompts, sampling, sse
from fastserve.server.answer import Call
from fastserve.server.errors import ApiError, ClientGoneError, to_api_error
from fastserve.server.lifecycle import Lifecycle
from fastserve.server.limits import Limits, check_api_key, check_headers, header, read_body
from fastserve.server.openai import ChatRequest, CompletionRequest, Model, ModelList, parse
from fastserve.server.render import ChatRenderer, CompletionRenderer
from fastserve.server.service import Service

OPEN_PATHS = frozenset({"/health"})  # a load balancer holds no key


@dataclass(frozen=True, slots=True)
class Door:
    """What every route shares."""

    service: Service
    model_name: str
    limits: Limits
    lifecycle: Lifecycle
    started_at: int

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.model_name:
            message = f"no model {name!r} here; this server has {self.model_name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def model(self) -> Model:
        return Model(id=self.model_name, created=self.started_at, max_model_len=self.service.max_model_len)


def create_app(
    service: Service,
    *,
    model_name: str,
    api_keys: Sequence[str] = (),
    limits: Limits | None = None,
    lifecycle: Lifecycle | None = None,
) -> Starlette:
    """The ASGI application. Whoever runs it drains and ends it through `lifecycle`."""
    limits = limits or Limits()
    door = Door(service, model_name, limits, lifecycle or Lifecycle(), int(time.time()))
    keys = [key.encode() for key in api_keys]
    app = Starlette(
        routes=[
            Route("/health", _health(door)),
            Route("/metrics", _metrics(door)),
            Route("/v1/models", _models(door)),
            Route("/v1/models/{model:path}", _model(door)),
            Route("/v1/completions", Generation(door, _completion_call), methods=["POST"]),
            Route("/v1/chat/completions", Generation(door, _chat_call), methods=["POST"]),
        ],
        middleware=[Middleware(Guard, api_keys=keys, limits=limits)],
        exception_handlers={HTTPException: _routing_failed},
    )
    app.router.redirect_slashes = False
    return app


class Guard:
    """Stands before every route: caps, the key, and the one place where an error becomes an answer."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[bytes], limits: Limits) -> None:
        self._app = app
        self._api_keys = api_keys
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            check_headers(scope, self._limits)
            if scope["path"] not in OPEN_PATHS:
                check_api_key(scope, self._api_keys)
            await self._app(scope, receive, watched_send)
        except ClientGoneError:
            return
        except Exception as error:
            if started:
                raise
            await to_api_error(error).response()(scope, receive, send)


class Generation:
    """POST: reads and checks a request, then answers it whole or as a stream of events."""

    def __init__(self, door: Door, make_call: Callable[[bytes, Door], Awaitable[tuple[Call, bool]]]) -> None:
        self._door = door
        self._make_call = make_call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        door = self._door
        with door.lifecycle.running():
            _check_json(scope)
            body = await read_body(scope, receive, door.limits)
            call, stream = await self._make_call(body, door)
            if stream:
                events = answer.chunks(call, door.service)
                await sse.send_events(events, lifecycle=door.lifecycle, receive=receive, send=send)
            else:
                work = answer.whole(call, door.service)
                content = await door.lifecycle.while_wanted(work, receive)
                await _json(content)(scope, receive, send)


async def _completion_call(body: bytes, door: Door) -> tuple[Call, bool]:
    request = parse(body, CompletionRequest)
    door.check_model(request.model)
    params = sampling.completion_params(request)
    only_echo = sampling.only_echoes(request)
    given = prompts.separate_prompts(request.prompt)
    ids = await prompts.prompt_ids(given, door.service, door.limits)
    prompts.check_fits(ids, params, door.service, door.limits)
    renderer = CompletionRenderer(
        door.service.tokenizer,
        n=params.n,
        echo=given if request.echo else None,
        only_echo=only_echo,
        num_logprobs=params.logprobs,
    )
    call = Call(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=door.model_name,
        prompts=ids,
        params=params,
        renderer=renderer,
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
        counts_output=not only_echo,
    )
    return call, bool(request.stream)


async def _chat_call(body: bytes, door: Door) -> tuple[Call, bool]:
    request = parse(body, ChatRequest)
    door.check_model(request.model)
    params = sampling.chat_params(request)
    ids = [await prompts.chat_prompt(request, door.service)]
    prompts.check_fits(ids, params, door.service, door.limits)
    call = Call(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=door.model_name,
        prompts=ids,
        params=params,
        renderer=ChatRenderer(door.service.tokenizer, num_logprobs=params.logprobs),
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
    )
    return call, bool(request.stream)


def _check_json(scope: Scope) -> None:
    """A web page may send anything but JSON to a server on its reader's host without asking first."""
    kind = (header(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        message = f"Content-Type must be application/json, got {kind.decode('latin-1')!r}"
        raise ApiError(415, message, None, "unsupported_media_type")


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")


Handler = Callable[[Request], Awaitable[Response]]


def _health(door: Door) -> Handler:
    async def health(request: Request) -> Response:
        if not door.service.healthy:
            status = f"failed: {door.service.failure}"
        else:
            status = "draining" if door.lifecycle.draining else "ok"
        return _json(msgspec.json.encode({"status": status}), 200 if status == "ok" else 503)

    return health


def _metrics(door: Door) -> Handler:
    async def metrics(request: Request) -> Response:
        return Response(generate_latest(door.service.metrics), media_type=CONTENT_TYPE_LATEST)

    return metrics


def _models(door: Door) -> Handler:
    async def models(request: Request) -> Response:
        return _json(msgspec.json.encode(ModelList(data=[door.model()])))

    return models


def _model(door: Door) -> Handler:
    async def model(request: Request) -> Response:
        door.check_model(request.path_params["model"])
        return _json(msgspec.json.encode(door.model()))

    return model


async def _routing_failed(request: Request, error: Exception) -> Response:
    return to_api_error(error).response()
