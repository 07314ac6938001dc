"""Connections: deadlines, malformed HTTP, and the names in uvicorn on which the connection class depends."""

import asyncio
import contextlib
import dataclasses
import errno
import gc
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from octavo.server.connection import UVICORN_INTERNALS, Connection
from octavo.server.limits import Limits
from serving import (
    TIGHT_LIMITS,
    RunningServer,
    completion_request,
    exchange_bytes,
    fast_models,
    raw_error_message,
    read_all,
    run_server,
    slow_model,
    wait_until,
)


@pytest.fixture(scope="module")
def server(char_model: Path) -> Iterator[RunningServer]:
    with run_server(fast_models(char_model), TIGHT_LIMITS) as running:
        yield running


# Deadlines


def test_missing_headers_time_out(server: RunningServer) -> None:
    assert "headers" in raw_error_message(exchange_bytes(server), 408)
    assert "headers" in raw_error_message(exchange_bytes(server, b"GET /health HTTP/1.1\r\nhost: local"), 408)


def test_headers_sent_slowly_time_out(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET /health HTTP/1.1\r\n")
        client.setblocking(False)
        for i in range(200):
            try:
                client.sendall(b"x-%d: 1\r\n" % i)
            except OSError:
                break
            time.sleep(0.02)
        client.setblocking(True)
        assert i < 199
        assert b" 408 " in read_all(client) or i < 199


def test_a_missing_body_times_out(server: RunningServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n"
    assert "body" in raw_error_message(exchange_bytes(server, head, b'{"model":'), 408)


def test_a_connection_is_reused_and_closed_when_idle(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        for _ in range(3):
            client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            received = b""
            while not received.endswith(b'{"status":"ok"}'):
                received += client.recv(4096)
        assert client.recv(4096) == b""  # closed by the server


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    request = b"GET %s HTTP/1.1\r\nhost: localhost\r\n%s\r\n"
    sent = request % (b"/health", b"") + request % (b"/nowhere", b"") + request % (b"/ready", b"connection: close\r\n")
    received = exchange_bytes(server, sent)
    assert [received.find(part) for part in (b"ok", b"/nowhere", b"ready")] == sorted(
        received.find(part) for part in (b"ok", b"/nowhere", b"ready")
    )
    assert received.count(b"HTTP/1.1 ") == 3


@pytest.mark.parametrize(
    "limits",
    [Limits(body_seconds=0.2, request_seconds=0.5, linger_seconds=0.3, idle_seconds=1), Limits(idle_seconds=1)],
)
def test_a_client_that_never_reads_is_disconnected(char_model: Path, limits: Limits) -> None:
    """When the time for a response is over, or earlier, if it reads nothing for a while."""
    endless = dataclasses.replace(slow_model(char_model, seconds=0), overflow="rechunk")
    with run_server({"small": endless}, limits) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        wait_until(lambda: bool(server.server.server_state.connections))
        [connection] = server.server.server_state.connections
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.sendall(completion_request(server, n=8, max_tokens=10_000, logprobs=20, stream=True))
        wait_until(lambda: not server.is_idle())
        wait_until(lambda: not server.server.server_state.connections)
        wait_until(server.is_idle)  # the engine frees the slots at its next step


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 5,
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\x00\r\n\r\n",
    ],
    ids=repr,
)
def test_malformed_http_is_400(server: RunningServer, request_: bytes) -> None:
    response = exchange_bytes(server, request_)
    assert raw_error_message(response, 400)


def test_a_malformed_body_after_expect_100_continue_is_400_and_logs_no_traceback(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n"
    assert raw_error_message(exchange_bytes(server, head + b"\r\nzz\r\n"), 400)
    assert server.request("GET", "/health").status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_resets_the_connection_during_an_error_response_logs_no_traceback(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write_eof(self: asyncio.Transport) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    with monkeypatch.context() as patch:
        patch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", write_eof)
        exchange_bytes(server, b"hello\r\n\r\n")
    wait_until(lambda: not server.server.server_state.connections)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# Forms of a request that HTTP/1.1 requires


@pytest.mark.parametrize("path", ["/", "/health", "/ping", "/v1/models", "/openapi.json", "/metrics", "/nowhere"])
def test_head_is_get_without_the_body(server: RunningServer, path: str) -> None:
    head, get = (server.request(method, path, headers={"accept-encoding": "gzip"}) for method in ("HEAD", "GET"))
    assert (head.status, head.body) == (get.status, b"")
    changing = ["date", "x-request-id"]
    if path == "/metrics":  # it counts the first request, and may be large enough to be compressed only then
        changing += ["content-length", "content-encoding", "vary"]
    for name in changing:
        head.headers.pop(name, None), get.headers.pop(name, None)
    assert head.headers == get.headers


def test_head_keeps_the_connection(server: RunningServer) -> None:
    request = b"HEAD /v1/models HTTP/1.1\r\nhost: localhost\r\n%s\r\n"
    received = exchange_bytes(server, request % b"", request % b"connection: close\r\n")
    assert received.count(b"HTTP/1.1 200 ") == 2
    assert b"{" not in received


def test_an_absolute_target_names_the_host(server: RunningServer) -> None:
    request = b"GET %s HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n\r\n"
    for target, host, status in (
        (b"http://localhost/health", b"localhost", b"200"),
        (b"HTTP://127.0.0.1:8000/v1/models?a=b", b"localhost", b"200"),
        (b"http://localhost", b"localhost", b"200"),
        (b"http://localhost/nowhere", b"localhost", b"404"),
        (b"http://localhost/health", b"evil.example", b"200"),  # the target counts
        (b"http://evil.example/health", b"localhost", b"400"),
        (b"http://localhost@evil.example/health", b"localhost", b"400"),
        (b"http:///health", b"localhost", b"400"),
    ):
        assert exchange_bytes(server, request % (target, host)).startswith(b"HTTP/1.1 %s " % status), target


def test_a_request_with_two_lengths_is_refused_and_its_connection_closed(server: RunningServer) -> None:
    """A proxy that takes the first length would take the rest for another client's request."""
    smuggled = b"0\r\n\r\nGET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    received = exchange_bytes(server, head % len(smuggled) + smuggled)
    assert "content-length" in raw_error_message(received, 400)
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("body", [{"max_tokens": 3}, {"max_tokens": 40}, {"max_tokens": 3, "stream": True}])
def test_a_client_that_closes_its_sending_side_gets_its_response(char_model: Path, body: dict[str, Any]) -> None:
    """`nc -N` does. A long response is preceded by `100 Continue`, by which a client that is gone is recognized."""
    models = {"small": slow_model(char_model, seconds=0.01)}
    with run_server(models) as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(completion_request(server, **body))
        client.shutdown(socket.SHUT_WR)
        received = read_all(client)
        *interim, response = re.split(rb"(?=HTTP/1.1 )", received)[1:]
        assert all(each == b"HTTP/1.1 100 Continue\r\n\r\n" for each in interim)
        assert len(interim) <= 1
        assert response.startswith(b"HTTP/1.1 200 ")
        assert b'"finish_reason":"length"' in response
        assert server.is_idle()


def test_a_client_that_is_gone_after_its_request_frees_its_slot(char_model: Path) -> None:
    with run_server({"slow": slow_model(char_model, seconds=0.05)}) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(completion_request(server, max_tokens=60))
            client.shutdown(socket.SHUT_WR)
            wait_until(lambda: any(stream.tokens for stream in server.models["slow"].worker.streams))
        [stream] = server.models["slow"].worker.streams
        wait_until(server.is_idle)
        assert stream.finish_reason == "cancelled"


@pytest.mark.parametrize("following", [b"\r\n", b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"])
@pytest.mark.parametrize("resets", [False, True])
def test_a_client_that_is_gone_after_the_beginning_of_another_request_frees_its_slot(
    char_model: Path, following: bytes, resets: bool
) -> None:
    with run_server({"slow": slow_model(char_model, seconds=0.05)}) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            if resets:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(completion_request(server, max_tokens=60))
            wait_until(lambda: any(stream.tokens for stream in server.models["slow"].worker.streams))
            client.sendall(following)
        [stream] = server.models["slow"].worker.streams
        wait_until(server.is_idle)
        assert stream.finish_reason == "cancelled"


def test_a_connection_that_its_client_has_reset_is_freed(char_model: Path) -> None:
    def connections() -> int:
        gc.collect()
        return sum(type(each) is Connection for each in gc.get_objects())

    before = connections()
    with run_server(fast_models(char_model)) as server:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
                client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert client.recv(4).startswith(b"HTTP")
        wait_until(lambda: connections() <= before)


def test_a_stream_that_its_client_has_reset_is_not_written_to(
    char_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio reports the loss of a connection in the next iteration of its loop, and warns of five writes until then.

    Here a reset and many pieces of text arrive while the loop is blocked.
    """
    served = slow_model(char_model, seconds=0.02)
    with run_server({"slow": served}) as server:
        is_blocked, released = threading.Event(), threading.Event()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
            client.sendall(completion_request(server, n=8, max_tokens=60, stream=True))
            assert client.recv(4).startswith(b"HTTP")
            [connection] = server.server.server_state.connections
            connection.loop.call_soon_threadsafe(lambda: is_blocked.set() or released.wait(30))
            assert is_blocked.wait(30)
        stream = served.worker.streams[0]
        count = len(stream.tokens)
        wait_until(lambda: len(stream.tokens) > count + 2)
        released.set()
        wait_until(server.is_idle)
        assert stream.finish_reason == "cancelled"
    assert not caplog.records


def test_the_request_id_of_the_client_is_returned_if_it_is_harmless(server: RunningServer) -> None:
    for sent in ("req-1", "0af7651916cd43dd8448eb211c80319c", "a" * 128, "a.b:c/d+e=@f_g"):
        assert server.request("GET", "/health", headers={"x-request-id": sent}).headers["x-request-id"] == sent
    for sent in ("", "a" * 129, "a b", "a\tb", "é", "<script>", "a;b"):
        returned = server.request("GET", "/health", headers={"x-request-id": sent}).headers["x-request-id"]
        assert returned.startswith("req_")


# uvicorn


def test_uvicorn_has_the_names_that_the_connection_uses(server: RunningServer) -> None:
    """If this fails, uvicorn has changed: `octavo/server/connection.py` says what to do."""
    owners: dict[str, Any] = {"H11Protocol": H11Protocol, "Server": uvicorn.Server}
    with contextlib.closing(server.connect()) as client:
        client.request("GET", "/health")
        client.getresponse().read()
        [connection] = server.server.server_state.connections
        owners |= {"H11Protocol instance": connection, "RequestResponseCycle instance": connection.cycle}
        missing = [
            f"{owner}.{name}"
            for owner, names in UVICORN_INTERNALS.items()
            for name in names
            if not hasattr(owners[owner], name)
        ]
    assert not missing, (
        f"uvicorn {uvicorn.__version__} has no {', '.join(missing)}, which octavo/server/connection.py uses: "
        "read the changes to uvicorn's h11_impl.py and server.py, and adapt the connection"
    )
    assert isinstance(connection, Connection)
    assert owners.keys() == UVICORN_INTERNALS.keys()
