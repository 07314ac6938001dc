"""Connections: deadlines, malformed HTTP, and the names in uvicorn on which the connection class depends."""

import contextlib
import json
import socket
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
    exchange_bytes,
    fast_models,
    raw_error_message,
    read_all,
    run_server,
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


def test_a_client_that_never_reads_is_disconnected(char_model: Path) -> None:
    limits = Limits(header_seconds=0.3, body_seconds=0.2, request_seconds=0.5, linger_seconds=0.3, idle_seconds=1)
    with run_server(fast_models(char_model), limits) as server:
        body = json.dumps(
            {"model": "small", "prompt": ["a" * 40] * 100, "logprobs": 5, "echo": True, "max_tokens": 9, "stream": True}
        ).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            wait_until(lambda: bool(server.server.server_state.connections))
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
