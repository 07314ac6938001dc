"""Who may ask: hosts, keys, web pages. And how much, how slowly: headers, bodies, connections. And how it ends."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.errors import OctavoError
from octavo.server import read_keys
from octavo.server.limits import Limits
from octavo.server.worker import Served
from serving import Answer, Running, running, slow, until, write

PATIENCE = Limits(header_seconds=0.5, body_seconds=0.5, linger_seconds=0.5, idle_seconds=1, connections=20,
                  body_bytes=20_000, prefix_bytes=1 << 20)  # fmt: skip
SITE = "https://example.org"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Iterator[Path]:
    """A checkpoint; the module's engines find what was built for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(built.parent))
        yield write(tmp_path_factory.mktemp("models") / "small", "char")


def quick(folder: Path, limits: Limits = PATIENCE) -> dict[str, Served]:
    return {"small": slow(folder, limits=limits, seconds=0)}


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running(quick(folder), PATIENCE) as it:
        yield it


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Running]:
    """A server with keys, a name of its own and a site that may use it; asked with the first key."""
    options: dict[str, Any] = {"keys": ["first-key", "second-key"], "allow_hosts": ["models.example"],
                               "allow_origins": [SITE + "/"]}  # fmt: skip
    with running(quick(folder), PATIENCE, "10.1.2.3", **options) as it:
        it.headers["authorization"] = "Bearer first-key"
        yield it


def raw(server: Running, *sent: bytes, wait: float = 5) -> bytes:
    """Send bytes as they are, and give all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as client:
        for each in sent:
            client.sendall(each)
        return everything(client)


def everything(client: socket.socket) -> bytes:
    received = b""
    try:
        while data := client.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def error(response: bytes, status: int) -> str:
    """The message of an error that came over a socket."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), response
    assert b"connection: close" in head.lower()
    return str(json.loads(body)["error"]["message"])


# Hosts


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "localhost.:1"])
def test_names_of_this_machine_are_answered(server: Running, host: str) -> None:
    assert server.ask("GET", "/v1/models", headers={"host": host}).status == 200


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "localhost:80:80",
    "10.1.2.3", "0.0.0.0", "[::2]", "", "localhost@evil.example", "evil.example/localhost",
])  # fmt: skip
def test_a_page_that_gave_this_machine_a_name_of_its_own_gets_nothing(server: Running, host: str) -> None:
    """DNS rebinding: for the browser, evil.example is now 127.0.0.1, and any page of it may read the answers."""
    for path in ("/v1/models", "/health", "/metrics"):
        answer = server.ask("GET", path, headers={"host": host})
        assert answer.status == 400
        assert "host" in answer.json["error"]["message"]


def test_hosts_that_were_named_are_answered(guarded: Running) -> None:
    for host in ("models.example", "Models.Example:443", "10.1.2.3"):
        assert guarded.ask("GET", "/v1/models", headers={"host": host}).status == 200
    assert guarded.ask("GET", "/v1/models", headers={"host": "10.1.2.4"}).status == 400


def test_listening_everywhere_any_address_is_ours_but_no_name_is(folder: Path) -> None:
    with running(quick(folder), PATIENCE, "0.0.0.0") as server:
        assert server.ask("GET", "/v1/models", headers={"host": "192.0.2.7:8000"}).status == 200
        assert server.ask("GET", "/v1/models", headers={"host": "[2001:db8::1]:8000"}).status == 200
        assert server.ask("GET", "/v1/models", headers={"host": "evil.example"}).status == 400


# Keys


@pytest.mark.parametrize("value", [
    "", "Bearer", "Bearer ", "Bearer wrong", "Bearer first-key2", "Bearer first-ke", "Basic first-key", "first-key",
    "Bearer first-key second-key", "Bearer FIRST-KEY", "Bearer \xff\xfe", "Bearer " + "a" * 5000,
])  # fmt: skip
def test_without_a_key_nothing_is_told(guarded: Running, value: str) -> None:
    for path in ("/v1/models", "/v1/completions", "/metrics", "/openapi.json", "/tokenizer_info", "/nowhere"):
        answer = guarded.ask("GET", path, headers={"authorization": value})
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json["error"]["code"] == "invalid_api_key"


def test_each_key_opens_all(guarded: Running) -> None:
    for value in ("Bearer first-key", "bearer second-key", "BEARER  second-key"):
        assert guarded.ask("GET", "/v1/models", headers={"authorization": value}).status == 200
    assert guarded.complete(max_tokens=1).status == 200


def test_the_document_says_what_needs_a_key(server: Running, guarded: Running) -> None:
    document = guarded.ask("GET", "/openapi.json").json
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path not in ("/health", "/ready"))
    assert "securitySchemes" not in server.ask("GET", "/openapi.json").json["components"]


def test_probes_need_no_key(guarded: Running) -> None:
    for path in ("/health", "/ready"):
        assert guarded.ask("GET", path, headers={"authorization": ""}).status == 200


def test_what_was_read_for_one_key_is_not_shared_with_another(guarded: Running) -> None:
    """Else the time of an answer, or `cached_tokens`, would tell what somebody else had asked."""

    def cached(key: str) -> int:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        body = json.dumps({"model": "small", "prompt": "the cat sat on the mat", "max_tokens": 1}).encode()
        answer = guarded.ask("POST", "/v1/completions", body, headers)
        return int(answer.json["usage"]["prompt_tokens_details"]["cached_tokens"])

    engine = guarded.models["small"].worker.engine
    engine._prefixes = type(engine._prefixes)(1 << 20)
    assert cached("first-key") == 0
    assert cached("first-key") > 0
    assert cached("second-key") == 0


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\none-key\n\n  two-key  \n", encoding="utf-8")
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    assert read_keys(None) == []
    assert read_keys(path) == ["one-key", "two-key"]
    monkeypatch.setenv("OCTAVO_API_KEY", "three-key")
    assert sorted(read_keys(path)) == ["one-key", "three-key", "two-key"]


@pytest.mark.parametrize(("content", "says"), [
    (None, "can't be read"), (b"\xff\xfe", "UTF-8"), (b"\n# none\n", "holds no key"), ("clé".encode(), "header"),
    (b"two words", "header"),
])  # fmt: skip
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(OctavoError, match=says) as caught:
        read_keys(tmp_path / "keys")
    assert caught.value.hint
    assert "clé" not in str(caught.value)


# Web pages


def test_no_page_may_use_the_server(server: Running) -> None:
    for origin in (SITE, "null", "http://localhost:3000", "https://127.0.0.1.evil.example", "http://["):
        answer = server.ask("GET", "/v1/models", headers={"origin": origin})
        assert answer.status == 403
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    preflight = {"origin": SITE, "access-control-request-method": "POST"}
    assert server.ask("OPTIONS", "/v1/completions", headers=preflight).status == 403


def test_a_page_of_this_server_may(server: Running) -> None:
    assert server.ask("GET", "/v1/models", headers={"origin": server.url}).status == 200


def test_a_page_that_was_named_may(guarded: Running) -> None:
    answer = guarded.ask("GET", "/v1/models", headers={"origin": SITE})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, SITE)
    assert answer.headers["vary"] == "origin"
    preflight = {"origin": SITE, "access-control-request-method": "POST", "authorization": ""}
    answer = guarded.ask("OPTIONS", "/v1/completions", headers=preflight)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, SITE)
    assert "authorization" in answer.headers["access-control-allow-headers"]
    refused = guarded.ask("GET", "/v1/models", headers={"origin": SITE, "authorization": "Bearer wrong"})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, SITE)  # so that the page can tell
    assert guarded.ask("GET", "/v1/models", headers={"origin": "https://example.com"}).status == 403


def test_every_answer_has_the_headers_that_keep_a_browser_safe(server: Running) -> None:
    for answer in (server.complete(max_tokens=1), server.ask("GET", "/nowhere"), server.complete(n=0)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"].startswith("req_")
        assert "server" not in answer.headers


# Sizes


def test_a_body_that_says_it_is_too_large_is_not_read(server: Running) -> None:
    request = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 104857600\r\n\r\n"
    assert "20,000 bytes" in error(raw(server, request), 413)


def test_a_hundred_megabytes_are_refused_though_the_client_sends_them_all(server: Running) -> None:
    answer = server.ask("POST", "/v1/completions", b"a" * 100_000_000, {"content-type": "application/json"})
    assert answer.status == 413
    assert answer.headers["connection"] == "close"


def test_a_body_that_grows_too_large_is_cut(server: Running) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
    assert "20,000 bytes" in error(raw(server, head, chunk * 10), 413)


def test_a_body_in_chunks_is_a_body(server: Running) -> None:
    body = json.dumps({"model": "small", "prompt": "the", "max_tokens": 1}).encode()
    head = (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n")  # fmt: skip
    chunks = b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body))) + b"0\r\n\r\n"
    assert raw(server, head, chunks).startswith(b"HTTP/1.1 200 ")


def test_headers_are_bounded_in_number_and_in_size(server: Running) -> None:
    many = b"".join(b"x-%d: 1\r\n" % i for i in range(101))
    assert "headers" in error(raw(server, b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + many + b"\r\n"), 431)
    large = b"x: " + b"a" * 70_000 + b"\r\n"
    assert "headers" in error(raw(server, b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + large + b"\r\n"), 431)
    path = b"GET /" + b"a" * 70_000
    assert error(raw(server, path + b" HTTP/1.1\r\nhost: localhost\r\n\r\n"), 431)
    assert "headers" in error(raw(server, path), 431)  # and there may be more to come


def test_one_connection_too_many_is_told_so(server: Running) -> None:
    until(lambda: not server.server.server_state.connections)
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(PATIENCE.connections)]
    until(lambda: len(server.server.server_state.connections) == PATIENCE.connections)
    assert "too many connections" in error(raw(server), 429)
    for each in held:
        each.close()
    until(lambda: server.ask("GET", "/health").status == 200)


# Patience


def test_headers_that_do_not_come_are_not_waited_for(server: Running) -> None:
    assert "headers" in error(raw(server), 408)
    assert "headers" in error(raw(server, b"GET /health HTTP/1.1\r\nhost: local"), 408)


def test_headers_that_trickle_are_not_waited_for(server: Running) -> None:
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
        assert b" 408 " in everything(client) or i < 199


def test_a_body_that_does_not_come_is_not_waited_for(server: Running) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n"
    assert "body" in error(raw(server, head, b'{"model":'), 408)


def test_an_idle_connection_is_closed_and_until_then_used_again(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        for _ in range(3):
            client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            received = b""
            while not received.endswith(b'{"status":"ok"}'):
                received += client.recv(4096)
        assert client.recv(4096) == b""  # closed by the server


def test_requests_sent_at_once_are_answered_in_order(server: Running) -> None:
    one = b"GET %s HTTP/1.1\r\nhost: localhost\r\n%s\r\n"
    sent = one % (b"/health", b"") + one % (b"/nowhere", b"") + one % (b"/ready", b"connection: close\r\n")
    received = raw(server, sent)
    assert [received.find(part) for part in (b"ok", b"/nowhere", b"ready")] == sorted(
        received.find(part) for part in (b"ok", b"/nowhere", b"ready")
    )
    assert received.count(b"HTTP/1.1 ") == 3


def test_a_client_that_never_reads_is_let_go(folder: Path) -> None:
    limits = Limits(header_seconds=0.3, body_seconds=0.2, request_seconds=0.5, linger_seconds=0.3, idle_seconds=1)
    with running(quick(folder, limits), limits) as server:
        body = json.dumps({"model": "small", "prompt": ["a" * 40] * 100, "logprobs": 5, "echo": True, "max_tokens": 9,
                           "stream": True}).encode()  # fmt: skip
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                           b"content-length: %d\r\n\r\n%s" % (len(body), body))  # fmt: skip
            until(lambda: bool(server.server.server_state.connections))
            until(lambda: not server.server.server_state.connections)
        assert server.idle()


@pytest.mark.parametrize("request_", [
    b"\r\n\r\n\r\n", b"hello\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"G\x00T / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 5,
    b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\x00\r\n\r\n",
], ids=repr)  # fmt: skip
def test_what_is_no_http_is_told_so(server: Running, request_: bytes) -> None:
    response = raw(server, request_)
    assert error(response, 400)


# How it ends


def test_a_server_told_to_end_finishes_what_it_has_begun(folder: Path) -> None:
    with running({"slow": slow(folder)}) as server, ThreadPoolExecutor(4) as pool:
        begun = [pool.submit(server.complete, max_tokens=40) for _ in range(4)]
        until(lambda: server.models["slow"].worker.engine.running == 4)
        server.server.handle_exit(15, None)
        assert server.ask("GET", "/ready").status == 503
        assert server.ask("GET", "/health").status == 200
        refused = server.complete()
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["connection"] == "close"
        for each in begun:
            answer: Answer = each.result()
            assert answer.status == 200
            assert len(answer.json["choices"][0]["text"]) == 40
        until(lambda: server.server.should_exit)


def test_told_twice_it_ends_at_once(folder: Path) -> None:
    with running({"slow": slow(folder, seconds=0.2)}) as server, ThreadPoolExecutor(1) as pool:
        cut = pool.submit(raw, server, _request(server, max_tokens=60), wait=60)
        until(lambda: server.models["slow"].worker.engine.running == 1)
        server.server.handle_exit(2, None)
        server.server.handle_exit(2, None)
        assert b" 200 " not in cut.result()


def _request(server: Running, **body: Any) -> bytes:
    content = json.dumps({"model": next(iter(server.models)), "prompt": "the"} | body).encode()
    return (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(content), content))  # fmt: skip


# Addresses


def test_an_address_that_others_reach_needs_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    for host in ("0.0.0.0", "::"):
        with pytest.raises(OctavoError, match="no API key") as caught:
            octavo.serve([folder], host=host, port=0)
        assert "--api-key-file" in str(caught.value.hint)


def test_a_port_in_use_is_told_before_anything_is_loaded(server: Running, tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=f"127.0.0.1:{server.port}"):
        octavo.serve([tmp_path / "nothing"], port=server.port)


@pytest.mark.parametrize(("options", "says"), [
    ({"port": -1}, "port=-1"), ({"port": 70000}, "port=70000"), ({"slots": 0}, "slots=0"), ({"queue": -1}, "queue=-1"),
    ({"host": "no-such-host.invalid"}, "can't listen"), ({"host": "a" * 300}, "can't listen"),
    ({"device": "tpu"}, "no device"),
])  # fmt: skip
def test_what_cannot_be_served_is_told(folder: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OctavoError, match=says) as caught:
        octavo.serve([folder], **{"port": 0} | options)
    assert caught.value.hint


def test_models_need_names_of_their_own(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="one name, 'small'"):
        octavo.serve([folder, tmp_path / "other" / "small"])


# The command


@pytest.fixture
def command(folder: Path, own_cache: Path) -> Iterator[subprocess.Popen[str]]:
    """`octavo serve` as a process of its own."""
    words = [sys.executable, "-m", "octavo", "serve", str(folder), "--port", "0", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as it:
        yield it
        it.kill()


def test_the_command_serves_until_it_is_told_to_end_and_loses_nothing(command: subprocess.Popen[str]) -> None:
    """SIGTERM under load: every request that was begun is answered whole, every later one refused; exit code 0."""
    assert command.stdout is not None
    said = json.loads(command.stdout.readline())
    assert said["models"] == ["small"]
    assert said["page"] + "v1" == said["url"]
    port = int(said["url"].rpartition(":")[2].removesuffix("/v1"))
    server = Running(port, None, {"small": None}, None)  # type: ignore[arg-type, dict-item]
    outcomes: list[str] = []
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            try:
                answer = server.complete(max_tokens=50, n=2)
            except ConnectionRefusedError:
                ended.set()  # it listens no more
            except (ConnectionResetError, BrokenPipeError):
                outcomes.append("not taken")
            except Exception as error:  # an answer that broke off, above all
                outcomes.append(repr(error))
            else:
                whole = answer.status == 200 and [len(c["text"]) for c in answer.json["choices"]] == [50, 50]
                outcomes.append("whole" if whole else str(answer.status))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for each in threads:
        each.start()
    until(lambda: outcomes.count("whole") > 20)
    command.terminate()
    for each in threads:
        each.join(30)
    assert command.wait(30) == 0
    assert set(outcomes) <= {"whole", "503", "not taken"}
    assert outcomes.count("not taken") <= 8  # at most one a client: what lay unread as the server closed
    assert command.stderr is not None
    assert "Traceback" not in command.stderr.read()
