"""The process: when it is ready, how it ends, and with which code."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import httpx
import pytest

from fastserve.server.run import AddressError, bind, url

# A server of the fake service. SIGUSR1 lets held requests go on, SIGUSR2 breaks the engine.
SERVER = """
import signal, sys
from fastserve.errors import FastServeError, RankLostError
from fastserve.server.app import create_app
from fastserve.server import protocol
from fastserve.server.lifecycle import Lifecycle
from fastserve.server.run import Ending, RunOptions, bind, run, url
from fastserve.testing.fake_service import FakeService

protocol.HEAD_TIMEOUT_S = float(sys.argv[2])
service, lifecycle = FakeService(), Lifecycle()
service.hold_after = 1
signal.signal(signal.SIGUSR1, lambda *_: service.release.set())

def broken(*_):
    service.failure = RankLostError("rank 1 died")
    service.healthy = False

signal.signal(signal.SIGUSR2, broken)
sock = bind("127.0.0.1", 0)
try:
    ending = run(
        create_app(service, model_name="fake-model", lifecycle=lifecycle),
        service,
        lifecycle,
        sock,
        on_ready=lambda: print(url(sock), flush=True),
        options=RunOptions(drain_timeout_s=float(sys.argv[1])),
    )
except FastServeError as error:
    sys.exit(f"fatal: {error}")
sys.exit(130 if ending is Ending.FORCED else 0)
"""
Start = Callable[..., tuple[subprocess.Popen[str], httpx.Client]]
BODY = {"prompt": "w1", "max_tokens": 3, "stream": True}


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[tuple[subprocess.Popen[str], httpx.Client]] = []

    def starting(
        drain_timeout_s: float = 30.0, *, head_timeout_s: float = 60.0
    ) -> tuple[subprocess.Popen[str], httpx.Client]:
        command = [sys.executable, "-c", SERVER, str(drain_timeout_s), str(head_timeout_s)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert server.stdout is not None
        client = httpx.Client(base_url=server.stdout.readline().strip(), timeout=30, trust_env=False)
        started.append((server, client))
        return server, client

    yield starting
    for server, client in started:
        client.close()
        server.kill()
        server.communicate()


def ended(server: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = server.communicate(timeout=30)
    return server.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_with_0(start: Start, number: signal.Signals) -> None:
    server, client = start()
    assert client.get("/health").json() == {"status": "ok"}
    server.send_signal(number)
    assert ended(server) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_finish_while_new_ones_get_503(start: Start, number: signal.Signals) -> None:
    server, client = start()
    with client.stream("POST", "/v1/completions", json=BODY) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        server.send_signal(number)
        while (refused := client.post("/v1/completions", json={**BODY, "max_tokens": 1})).status_code != 503:
            pass  # the signal is on its way; a request of one token is not held
        assert refused.json()["error"]["code"] == "shutting_down"
        assert client.get("/health").status_code == 503
        server.send_signal(signal.SIGUSR1)
        rest = list(lines)
    assert len(rest) == 3
    assert rest[-1] == "data: [DONE]"
    assert ended(server) == (0, "")


def test_what_outlives_the_drain_timeout_is_ended_and_told_so(start: Start) -> None:
    server, client = start(0.05)
    with client.stream("POST", "/v1/completions", json=BODY) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        server.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert json.loads(rest[0].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert ended(server) == (0, "")


def test_a_second_ctrl_c_ends_at_once(start: Start) -> None:
    server, client = start()
    with client.stream("POST", "/v1/completions", json=BODY) as response:
        lines = response.iter_lines()  # dropping it would hang up
        next(lines)
        server.send_signal(signal.SIGINT)
        while client.get("/health").status_code != 503:
            pass  # two signals at the same moment would be one
        server.send_signal(signal.SIGINT)
        assert ended(server) == (130, "")


def test_a_fatal_engine_error_ends_the_process_with_one_line(start: Start) -> None:
    server, client = start()
    assert client.get("/health").status_code == 200
    server.send_signal(signal.SIGUSR2)
    assert ended(server) == (1, "fatal: rank 1 died\n")


def test_a_busy_port_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            AddressError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"
        ):
            bind("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_said() -> None:
    with pytest.raises(AddressError, match="cannot listen on"):
        bind("host.invalid", 0)
    with pytest.raises(AddressError, match=r"cannot listen on 192\.0\.2\.1 port 0"):
        bind("192.0.2.1", 0)


def test_urls_of_both_families() -> None:
    with bind("127.0.0.1", 0) as sock:
        assert url(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
    if socket.has_ipv6:
        try:
            sock = bind("::1", 0)
        except AddressError:
            return  # no loopback of that family here
        with sock:
            assert url(sock).startswith("http://[::1]:")


def answer_to(client: httpx.Client, sent: bytes) -> bytes:
    """Everything that comes back until the server closes the connection."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_who_does_not_finish_the_headers_is_not_waited_for(start: Start, sent: bytes) -> None:
    _, client = start(head_timeout_s=0.1)
    head, _, body = answer_to(client, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "headers_timeout"


def test_a_request_whose_headers_came_is_not_hurried(start: Start) -> None:
    server, client = start(head_timeout_s=0.1)
    with client.stream("POST", "/v1/completions", json=BODY) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        assert b"headers_timeout" in answer_to(client, b"")  # that time is over now
        server.send_signal(signal.SIGUSR1)
        assert list(lines)[-1] == "data: [DONE]"
