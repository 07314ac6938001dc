"""Malformed, fuzzed, oversized, slow and disconnected requests harm neither the server nor other clients.

The tests check statuses, texts and memory, but no times, which depend on the machine.
"""

import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from octavo.server.limits import Limits
from octavo.server.requests import CompletionRequest
from serving import RunningServer, read_all, run_server, slow_model, wait_until

JSON = {"content-type": "application/json"}


@dataclass
class ServeProcess:
    """`octavo serve` in another process, whose memory is measured."""

    process: psutil.Process
    port: int

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def post(self, body: bytes) -> int:
        """Post a completion request on a new connection and return the status."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("POST", "/v1/completions", body, JSON)
            return connection.getresponse().status

    def complete(self, **body: Any) -> dict[str, Any]:
        """Post a valid completion request, which must succeed."""
        with contextlib.closing(self.connect()) as connection:
            content = {"model": "small", "prompt": "the cat", "seed": 1} | body
            connection.request("POST", "/v1/completions", json.dumps(content), JSON)
            response = connection.getresponse()
            completion: dict[str, Any] = json.loads(response.read())
            assert response.status == 200, completion
            return completion

    def memory(self) -> int:
        """Resident bytes, with the freed memory that the allocator keeps."""
        return int(self.process.memory_info().rss)


@pytest.fixture(scope="module")
def server(char_model: Path) -> Iterator[ServeProcess]:
    """The server after a warm-up with every kind of request."""
    words = [sys.executable, "-m", "octavo", "serve", str(char_model), "--port", "0", "--json"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        try:
            server = ServeProcess(psutil.Process(process.pid), int(json.loads(line)["url"].rpartition(":")[2][:-3]))
            for i in range(40):
                server.complete(max_tokens=60, n=1 + i % 8, logprobs=5, echo=True)
                server.post(b"a" * 900_000)
            yield server
            assert process.poll() is None  # it still runs
        finally:
            process.terminate()
            assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()


# Malformed requests

VALID = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b'content-length: 51\r\n\r\n{"model": "small", "prompt": "the", "max_tokens": 2}'
)


def malformed_request(rng: random.Random) -> bytes:
    """A request that is cut, changed, shuffled or random, or has repeated or invalid parts."""
    head, _, body = VALID.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    match rng.randrange(9):
        case 0:
            return VALID[: rng.randrange(len(VALID))]
        case 1:
            changed = bytearray(VALID)
            for _ in range(rng.randint(1, 20)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)
        case 2:
            return rng.randbytes(rng.randint(1, 5000))
        case 3:
            rng.shuffle(lines)
        case 4:
            lines += [rng.choice(lines[1:])] * rng.randint(1, 200)
        case 5:
            lines.append(bytes(rng.choices(b"abc:\x00\x7f \t\xff-", k=rng.randint(1, 60_000))))
        case 6:
            lines[0] = b"%s %s %s" % (
                rng.choice((b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"HEAD", b"")),
                rng.choice(
                    (
                        b"/v1/completions",
                        b"/",
                        b"*",
                        b"http://evil/",
                        b"//",
                        b"/%00",
                        b"/../../etc/passwd",
                        b"/" + b"a" * 20_000,
                        b"localhost:80",
                        b"/v1/models/%ff%fe",
                        b"/?" + b"q" * 999,
                    )
                ),
                rng.choice((b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/11", b"", b"ICMP/1.1")),
            )
        case 7:
            lines.append(b"transfer-encoding: chunked")
            lines = [line for line in lines if not line.startswith(b"content-length") or rng.random() < 0.3]
            size = rng.choice((b"5", b"-5", b"fffffffffffffffff", b"g", b"", b"5;" + b"x" * 999, b"0"))
            body = size + b"\r\n" + body[: rng.randrange(10)] + b"\r\n" + rng.choice((b"0\r\n\r\n", b"", b"zz"))
        case _:
            length = rng.choice((b"0", b"1", b"9" * 18, b"9" * 99, b"-1", b"0x10", b"5 5", b"", b"+5", b"1e3"))
            lines = [line for line in lines if not line.startswith(b"content-length")] + [b"content-length: " + length]
    return rng.choice((b"\r\n", b"\n", b"\r")).join(lines) + b"\r\n\r\n" + body


def send_and_receive(port: int, sent: bytes, wait: float) -> bytes:
    """Send bytes and return what arrives within `wait` seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as client:
        with contextlib.suppress(ConnectionError, TimeoutError):
            client.sendall(sent)
        with contextlib.suppress(ConnectionError, TimeoutError):
            return client.recv(65536)
    return b""


def test_500_malformed_requests_do_not_harm_the_server(server: ServeProcess) -> None:
    before, rng = server.memory(), random.Random(1)
    requests = [malformed_request(rng) for _ in range(500)]
    with ThreadPoolExecutor(25) as pool:
        responses = list(pool.map(lambda request: send_and_receive(server.port, request, 0.3), requests))
    statuses = Counter(int(response[9:12]) for response in responses if response)
    assert statuses.keys() <= {200, 400, 401, 403, 404, 405, 408, 413, 431}, statuses
    assert statuses[400] > 100
    assert server.complete()
    assert server.memory() < 1.1 * before


# Fuzzed requests

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    5,
    10**6,
    10**9,
    -(10**9),
    10**18,
    10**40,
    0.0,
    0.5,
    -0.5,
    1e-300,
    1e300,
    1.5,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "a",
    "the cat",
    "\x00",
    "\ud800",
    "é" * 50,
    "a" * 5000,
    "猫",
    "NaN",
    [],
    [[]],
    [0],
    [1, 2, 3],
    [-1],
    [10**9],
    [1.5],
    [True],
    ["a"],
    ["a", "the"],
    [["a"]],
    [[1], [2]],
    [None],
    {},
    {"a": 1},
    {"0": 5},
    {"0": 1000},
    {"-1": 1},
    {"include_usage": True},
    {"include_usage": 1},
    [[[[[[]]]]]],
    ["a"] * 200,
    [1] * 65,
]
FIELDS = [*CompletionRequest.model_fields, "suffix", "messages", "tools", "unknown", "promt", ""]


def fuzzed_body(rng: random.Random) -> bytes:
    """A body with some invalid fields, and sometimes invalid JSON."""
    body: dict[str, Any] = {"model": "small", "prompt": "the cat", "max_tokens": rng.randint(0, 8)}
    for _ in range(rng.randint(0, 3)):
        body[rng.choice(FIELDS)] = rng.choice(VALUES)
    text = json.dumps(body).encode()
    if rng.random() < 0.2:
        changed = bytearray(text)
        for _ in range(rng.randint(1, 5)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        text = bytes(changed)
    return text


def test_2000_fuzzed_requests_do_not_harm_the_server(server: ServeProcess) -> None:
    before, text, rng = server.memory(), server.complete()["choices"], random.Random(2)
    bodies = [fuzzed_body(rng) for _ in range(2000)]

    def post_all(bodies: list[bytes]) -> Counter[int]:
        statuses: Counter[int] = Counter()
        with contextlib.closing(server.connect()) as connection:
            for body in bodies:
                connection.request("POST", "/v1/completions", body, JSON)
                response = connection.getresponse()
                content = response.read()
                statuses[response.status] += 1
                if response.status != 200:
                    assert json.loads(content)["error"]["message"]
                elif b'"error"' in content:
                    raise AssertionError(content)
        return statuses

    with ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(post_all, [bodies[i::8] for i in range(8)]), Counter[int]())
    assert total.keys() <= {200, 400, 404, 429}, total
    assert total.total() == 2000
    assert total[200] > 200
    assert total[400] > 800
    assert server.complete()["choices"] == text
    assert server.memory() < 1.1 * before


# Oversized requests


@pytest.mark.parametrize(
    "body",
    [
        {"n": 10**6},
        {"best_of": 10**6},
        {"max_tokens": 10**9},
        {"logprobs": 10**6},
        {"n": 128, "prompt": ["a"] * 128},
        {"prompt": "a" * 900_000},
        {"prompt": [1] * 300_000},
        {"prompt": [[1]] * 200_000},
        {"prompt": ["a"] * 200_000},
        {"prompt": [["a"]] * 100_000},
        {"stop": ["a"] * 200_000},
        {"stop": "a" * 900_000},
        {"user": "a" * 900_000},
        {"logit_bias": {str(i): 1 for i in range(50_000)}},
        {f"field {i}": 1 for i in range(40_000)},
        {"model": "a" * 900_000},
        {"stream_options": {str(i): 1 for i in range(50_000)}},
        {"prompt": "the", "suffix": "a" * 900_000},
    ],
    ids=lambda body: f"{next(iter(body))[:12]}={str(next(iter(body.values())))[:12]}",
)
def test_oversized_fields_are_refused_without_using_memory(server: ServeProcess, body: dict[str, Any]) -> None:
    before = server.memory()
    content = json.dumps({"model": "small", "prompt": "the"} | body).encode()
    assert {server.post(content) for _ in range(3)} == {400}
    assert server.memory() < 1.1 * before


def test_a_body_of_100_mb_is_not_buffered(server: ServeProcess) -> None:
    before = server.memory()
    assert server.post(b"a" * 100_000_000) == 413
    assert server.memory() < 1.1 * before


def test_deep_nesting_and_long_numbers_are_400(server: ServeProcess) -> None:
    nines = b"9" * 900_000
    for body in (b"[" * 900_000, b'{"a":' * 100_000, b'{"n": %s}' % nines, b'{"n": 1e%s}' % nines):
        assert server.post(body) == 400


# Slow clients


def test_50_slow_clients_do_not_block_another(server: ServeProcess) -> None:
    ended = threading.Event()

    def trickle(client: socket.socket, number: int) -> None:
        """Send a byte at a time. Half of the clients never finish their headers, half never their body."""
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500000\r\n"
        client.sendall(head if number % 2 else head + b"\r\n")
        while not ended.is_set():
            try:
                client.sendall(b"x")
            except OSError:
                return
            time.sleep(0.02)

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(50)]
        threads = [threading.Thread(target=trickle, args=(each, i)) for i, each in enumerate(clients)]
        for each in threads:
            each.start()
        try:
            texts = {server.complete(max_tokens=30)["choices"][0]["text"] for _ in range(40)}
        finally:
            ended.set()
            for each in threads:
                each.join()
    assert len(texts) == 1


# Clients that disconnect


def test_100_clients_that_disconnect_free_their_slots_within_two_tokens(char_model: Path) -> None:
    """Half of them stream. A token takes 50 ms; the tokens after the client has disconnected are counted."""
    request = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s"
    )
    with run_server({"slow": slow_model(char_model, slots=10, seconds=0.05)}) as server:
        worker = server.models["slow"].worker
        tokens_after = []
        for _ in range(10):
            clients = []
            for i in range(10):
                body = json.dumps({"model": "slow", "prompt": "the", "max_tokens": 60, "stream": i % 2 == 0}).encode()
                clients.append(socket.create_connection(("127.0.0.1", server.port)))
                clients[-1].sendall(request % (len(body), body))
            wait_until(lambda: sum(bool(stream.tokens) for stream in worker.streams) == 10)
            streams = worker.streams
            for each in clients:
                each.close()
            counts = {stream: len(stream.tokens) for stream in streams}
            wait_until(server.is_idle)
            tokens_after += [len(stream.tokens) - count for stream, count in counts.items()]
        assert len(tokens_after) == 100
        assert max(tokens_after) <= 2
        assert server.text(max_tokens=3)


def test_queued_requests_of_disconnected_clients_are_never_started(char_model: Path) -> None:
    with run_server({"slow": slow_model(char_model, slots=1, seconds=0.05)}) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.text, max_tokens=20)
        wait_until(lambda: server.models["slow"].worker.engine.running == 1)
        connections = []
        for _ in range(10):
            connection = server.connect()
            body = json.dumps({"model": "slow", "prompt": "the", "max_tokens": 60})
            connection.request("POST", "/v1/completions", body, JSON)
            connections.append(connection)
        wait_until(lambda: server.models["slow"].worker.waiting == 10)
        for connection in connections:
            connection.close()
        wait_until(lambda: server.models["slow"].worker.waiting == 0)
        assert len(first.result()) == 20


# Too many requests and connections


def test_requests_beyond_the_capacity_are_completed_or_429(char_model: Path) -> None:
    with run_server({"slow": slow_model(char_model, slots=4, queue=4, seconds=0.005)}) as server:

        def complete(seed: int) -> tuple[int, int, str]:
            response = server.complete(seed=seed % 4, max_tokens=20, stream=seed % 2 == 0)
            if response.status == 429:
                return seed % 4, 429, response.headers["retry-after"]
            choices = response.events[:-1] if seed % 2 == 0 else [response.json]
            return seed % 4, response.status, "".join(each["choices"][0]["text"] for each in choices)

        alone = {seed: server.text(seed=seed, max_tokens=20) for seed in range(4)}
        with ThreadPoolExecutor(80) as pool:
            outcomes = list(pool.map(complete, range(240)))
        counts = Counter(status for _, status, _ in outcomes)
        assert counts.keys() == {200, 429}
        assert counts[200] >= 8
        for seed, status, text in outcomes:
            assert text == (alone[seed] if status == 200 else "1")
        wait_until(server.is_idle)
        assert server.text(seed=0, max_tokens=20) == alone[0]


def test_too_many_connections_block_other_clients_only_briefly(char_model: Path) -> None:
    limits = Limits(connections=30, header_seconds=0.5, linger_seconds=0.3)
    with (
        run_server({"slow": slow_model(char_model, seconds=0)}, limits) as server,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        statuses = []
        wait_until(lambda: (statuses.append(health_status(server)) or statuses[-1]) == 200)
        assert set(statuses) <= {200, 429}


def test_connections_far_beyond_the_limit_are_reset(char_model: Path) -> None:
    """The ones that are refused need a file descriptor until their clients have read why."""
    limits = Limits(connections=5, refused_connections=3)
    with (
        run_server({"slow": slow_model(char_model, seconds=0)}, limits) as server,
        contextlib.ExitStack() as stack,
    ):
        address = ("127.0.0.1", server.port)
        clients = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(20)]
        received = [read_all(client) for client in clients[5:]]
        assert [b" 429 " in each for each in received] == [True] * 3 + [False] * 12
        assert not any(received[3:])


def health_status(server: RunningServer) -> int:
    try:
        return server.request("GET", "/health").status
    except (ConnectionError, http.client.HTTPException):
        return 429  # refused and closed before the request was sent
