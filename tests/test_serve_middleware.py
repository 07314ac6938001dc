"""The middleware: hosts, origins, API keys, sizes of headers and bodies, response headers, compression."""

import dataclasses
import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import (
    TIGHT_LIMITS,
    RunningServer,
    exchange_bytes,
    fast_models,
    raw_error_message,
    run_server,
    wait_until,
)

ORIGIN = "https://example.org"


@pytest.fixture(scope="module")
def server(char_model: Path) -> Iterator[RunningServer]:
    with run_server(fast_models(char_model), TIGHT_LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def protected(char_model: Path) -> Iterator[RunningServer]:
    """A server with keys, another host name and an allowed origin. Requests have the first key."""
    options: dict[str, Any] = {
        "keys": {"first": "first-key", "second": "second-key"},
        "allow_hosts": ["models.example"],
        "allow_origins": [ORIGIN + "/"],
    }
    with run_server(fast_models(char_model), TIGHT_LIMITS, "10.1.2.3", **options) as running:
        running.headers["authorization"] = "Bearer first-key"
        yield running


# Hosts


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "localhost.:1"])
def test_names_of_this_machine_are_allowed_hosts(server: RunningServer, host: str) -> None:
    assert server.request("GET", "/v1/models", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost:80:80",
        "10.1.2.3",
        "0.0.0.0",
        "[::2]",
        "",
        "localhost@evil.example",
        "evil.example/localhost",
    ],
)
def test_dns_rebinding_is_refused(server: RunningServer, host: str) -> None:
    """The browser now resolves evil.example to 127.0.0.1, so a page of that site could read the responses."""
    for path in ("/v1/models", "/health", "/metrics"):
        response = server.request("GET", path, headers={"host": host})
        assert response.status == 400
        assert "host" in response.json["error"]["message"]


def test_requests_to_allowed_hosts_are_accepted(protected: RunningServer) -> None:
    for host in ("models.example", "Models.Example:443", "10.1.2.3"):
        assert protected.request("GET", "/v1/models", headers={"host": host}).status == 200
    assert protected.request("GET", "/v1/models", headers={"host": "10.1.2.4"}).status == 400


def test_a_server_on_all_addresses_allows_any_address_as_host_but_no_name(char_model: Path) -> None:
    with run_server(fast_models(char_model), TIGHT_LIMITS, "0.0.0.0") as server:
        assert server.request("GET", "/v1/models", headers={"host": "192.0.2.7:8000"}).status == 200
        assert server.request("GET", "/v1/models", headers={"host": "[2001:db8::1]:8000"}).status == 200
        assert server.request("GET", "/v1/models", headers={"host": "evil.example"}).status == 400


# Keys


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer first-key2",
        "Bearer first-ke",
        "Basic first-key",
        "first-key",
        "Bearer first-key second-key",
        "Bearer FIRST-KEY",
        "Bearer \xff\xfe",
        "Bearer " + "a" * 5000,
    ],
)
def test_without_a_valid_key_every_route_is_401(protected: RunningServer, value: str) -> None:
    for path in ("/v1/models", "/v1/completions", "/metrics", "/openapi.json", "/tokenizer_info", "/nowhere"):
        response = protected.request("GET", path, headers={"authorization": value})
        assert response.status == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json["error"]["code"] == "invalid_api_key"


def test_every_key_is_accepted(protected: RunningServer) -> None:
    for value in ("Bearer first-key", "bearer second-key", "BEARER  second-key"):
        assert protected.request("GET", "/v1/models", headers={"authorization": value}).status == 200
    assert protected.complete(max_tokens=1).status == 200


def test_the_openapi_document_states_which_routes_need_a_key(server: RunningServer, protected: RunningServer) -> None:
    document = protected.request("GET", "/openapi.json").json
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path not in ("/health", "/ready"))
    assert "securitySchemes" not in server.request("GET", "/openapi.json").json["components"]


def test_probes_need_no_key(protected: RunningServer) -> None:
    for path in ("/health", "/ping", "/ready"):
        assert protected.request("GET", path, headers={"authorization": ""}).status == 200


def test_the_prefix_cache_is_not_shared_between_keys(protected: RunningServer) -> None:
    """Otherwise the time of an response, or `cached_tokens`, would reveal the prompts of other clients."""

    def cached(key: str) -> int:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        body = json.dumps({"model": "small", "prompt": "on the mat, and the rat", "max_tokens": 1}).encode()
        response = protected.request("POST", "/v1/completions", body, headers)
        return int(response.json["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("first-key") == 0
    assert cached("first-key") > 0
    assert cached("second-key") == 0


# Origins


def test_pages_of_other_origins_are_refused(server: RunningServer) -> None:
    for origin in (ORIGIN, "null", "http://localhost:3000", "https://127.0.0.1.evil.example", "http://["):
        response = server.request("GET", "/v1/models", headers={"origin": origin})
        assert response.status == 403
        assert not [name for name in response.headers if name.startswith("access-control-")]
    preflight = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "x-a"}
    response = server.request("OPTIONS", "/v1/completions", headers=preflight)
    assert response.status == 403
    assert "access-control-allow-headers" not in response.headers


def test_a_page_of_the_same_origin_is_allowed(server: RunningServer) -> None:
    assert server.request("GET", "/v1/models", headers={"origin": server.url}).status == 200


def test_pages_of_an_allowed_origin_get_cors_headers(protected: RunningServer) -> None:
    response = protected.request("GET", "/v1/models", headers={"origin": ORIGIN})
    assert (response.status, response.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert response.headers["vary"] == "origin"
    assert "x-request-id" in response.headers["access-control-expose-headers"]
    preflight = {"origin": ORIGIN, "access-control-request-method": "POST", "authorization": ""}
    response = protected.request("OPTIONS", "/v1/completions", headers=preflight)
    assert (response.status, response.headers["access-control-allow-origin"]) == (204, ORIGIN)
    assert "authorization" in response.headers["access-control-allow-headers"]
    requested = "authorization,content-type,x-stainless-arch,x-stainless-os"  # those of OpenAI's JavaScript client
    for sent, allowed in ((requested, requested), ("a\x7f", "authorization, content-type")):
        headers = preflight | {"access-control-request-headers": sent}
        response = protected.request("OPTIONS", "/v1/completions", headers=headers)
        assert response.headers["access-control-allow-headers"] == allowed
    refused = protected.request("GET", "/v1/models", headers={"origin": ORIGIN, "authorization": "Bearer wrong"})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)  # the page can read it
    assert protected.request("GET", "/v1/models", headers={"origin": "https://example.com"}).status == 403


def test_every_response_has_the_security_headers(server: RunningServer) -> None:
    for response in (server.complete(max_tokens=1), server.request("GET", "/nowhere"), server.complete(n=0)):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-request-id"].startswith("req_")
        assert "server" not in response.headers


# Sizes


def test_a_body_whose_content_length_is_too_large_is_not_read(server: RunningServer) -> None:
    request = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 104857600\r\n\r\n"
    assert "20,000 bytes" in raw_error_message(exchange_bytes(server, request), 413)


def test_a_body_of_100_mb_that_the_client_sends_completely_is_refused(char_model: Path) -> None:
    limits = dataclasses.replace(TIGHT_LIMITS, linger_seconds=20)  # on a busy machine, sending takes seconds
    with run_server(fast_models(char_model), limits) as server:
        response = server.request("POST", "/v1/completions", b"a" * 100_000_000, {"content-type": "application/json"})
        assert response.status == 413
        assert response.headers["connection"] == "close"


def test_a_chunked_body_that_grows_too_large_is_refused(server: RunningServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
    assert "20,000 bytes" in raw_error_message(exchange_bytes(server, head, chunk * 10), 413)


def test_a_chunked_body_is_accepted(server: RunningServer) -> None:
    body = json.dumps({"model": "small", "prompt": "the", "max_tokens": 1}).encode()
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    chunks = b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body))) + b"0\r\n\r\n"
    assert exchange_bytes(server, head, chunks).startswith(b"HTTP/1.1 200 ")


def test_headers_are_limited_in_number_and_size(server: RunningServer) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
    many_fields = b"".join(b"x-%d: 1\r\n" % i for i in range(101))
    assert "headers" in raw_error_message(exchange_bytes(server, request + many_fields + b"\r\n"), 431)
    large_field = b"x: " + b"a" * 70_000 + b"\r\n"
    assert "headers" in raw_error_message(exchange_bytes(server, request + large_field + b"\r\n"), 431)
    path = b"GET /" + b"a" * 70_000
    assert raw_error_message(exchange_bytes(server, path + b" HTTP/1.1\r\nhost: localhost\r\n\r\n"), 431)
    assert "headers" in raw_error_message(exchange_bytes(server, path), 431)  # although the headers are incomplete


def test_a_connection_above_the_limit_is_429(server: RunningServer) -> None:
    wait_until(lambda: not server.server.server_state.connections)
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(TIGHT_LIMITS.connections)]
    wait_until(lambda: len(server.server.server_state.connections) == TIGHT_LIMITS.connections)
    assert "too many connections" in raw_error_message(exchange_bytes(server), 429)
    for each in connections:
        each.close()
    wait_until(lambda: server.request("GET", "/health").status == 200)


# The order of the middleware, and compression

REFUSALS: list[tuple[int, dict[str, str]]] = [  # a refused request of each middleware, outermost first
    (431, {"x-large": "a" * 15_000, "x-larger": "a" * 2_000}),
    (400, {"host": "evil.example"}),
    (403, {"origin": "https://evil.example"}),
    (401, {"authorization": "Bearer wrong"}),
    (413, {"content-length": "104857600"}),
]


@pytest.mark.parametrize("first", range(len(REFUSALS)))
def test_the_outermost_middleware_refuses_first(protected: RunningServer, first: int) -> None:
    """A request that several would refuse. The order is that of `wrap_in_middleware`."""
    headers: dict[str, str] = {}
    for _, broken in reversed(REFUSALS[first:]):
        headers |= broken
    headers = {"host": "localhost", "authorization": "Bearer first-key"} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    response = exchange_bytes(protected, f"POST /v1/completions HTTP/1.1\r\n{lines}\r\n".encode())
    assert raw_error_message(response, REFUSALS[first][0])
    assert b"x-content-type-options: nosniff" in response


def test_a_draining_server_says_so_without_a_key(char_model: Path) -> None:
    with run_server(fast_models(char_model), TIGHT_LIMITS, keys={"a": "a-key"}) as server:
        server.app.drain.draining = True
        assert server.request("GET", "/v1/models").status == 503
        assert server.request("GET", "/v1/models", headers={"origin": "https://evil.example"}).status == 403
        assert server.request("GET", "/health").status == 200


def test_large_responses_are_compressed_and_event_streams_are_not(server: RunningServer) -> None:
    accept = {"accept-encoding": "gzip", "content-type": "application/json"}
    plain = server.request("GET", "/openapi.json")
    compressed = server.request("GET", "/openapi.json", headers={"accept-encoding": "br, gzip"})
    assert compressed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(compressed.body) == plain.body
    for refused in ("gzip;q=0", "identity", "gzip; q=0.0, br"):
        response = server.request("GET", "/openapi.json", headers={"accept-encoding": refused})
        assert "content-encoding" not in response.headers
    assert "content-encoding" not in server.request("GET", "/health", headers=accept).headers  # too small
    body = json.dumps({"model": "small", "prompt": ["the"] * 16, "max_tokens": 50, "stream": True}).encode()
    stream = server.request("POST", "/v1/completions", body, accept)
    assert len(stream.body) > 2048
    assert "content-encoding" not in stream.headers
    assert stream.events[-1] == "[DONE]"
