"""A server for tests, which runs in this process on a free port with small models, and a plain HTTP client.

`RunningServer` gives a test access to the server's workers, drain and connections.
"""

import contextlib
import http.client
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from octavo import checkpoint, tokenizers
from octavo.generation.engine import Engine
from octavo.generation.worker import Worker
from octavo.model import GPT
from octavo.server import ServeSettings, listen, load_model
from octavo.server.app import Application, build_app
from octavo.server.connection import Server
from octavo.server.limits import Limits
from octavo.server.served_model import ServedModel
from octavo.settings import resolve
from octavo.tokenizers import Tokenizer
from small_models import without_end_of_text

TEXT = "the cat sat on the mat, and the rat sat on the hat. café naïve €5!\n" * 30
SETTINGS = ServeSettings(device="cpu", prefix_cache=1)
LIMITS = Limits()
BLOCK = 64
TIGHT_LIMITS = Limits(
    header_seconds=0.5,
    body_seconds=0.5,
    linger_seconds=0.5,
    idle_seconds=1,
    connections=20,
    body_bytes=20_000,
)


def write_checkpoint(folder: Path, tokenizer: str, seed: int = 3, end_of_text: bool = True) -> Path:
    """A checkpoint of random weights, large enough that the most likely token stands out.

    Without a token that ends a text, every text is as long as it may be.
    """
    built = tokenizers.build(tokenizer, TEXT)
    if not end_of_text:
        built = without_end_of_text(built)
    settings = resolve(vocab_size=built.vocab_size, n_layer=2, n_head=2, n_embd=32, block_size=BLOCK)
    model = GPT(settings, torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    checkpoint.save(folder, model, built, settings, {"step": 0})
    return folder


class SlowEngine(Engine):
    """An engine that sleeps `seconds` after each step, so that it is as slow as a large model's."""

    seconds = 0.02

    def step(self) -> bool:
        worked = super().step()
        if worked:
            time.sleep(self.seconds)
        return worked


def slow_model(folder: Path, slots: int = 8, queue: int = SETTINGS.queue, seconds: float = 0.02) -> ServedModel:
    """A served model, `slow`, whose engine takes `seconds` for a step."""
    loaded = checkpoint.load(folder)
    prefix_bytes = SETTINGS.prefix_cache << 20
    engine = SlowEngine(loaded.model, slots, vocab_size=loaded.tokenizer.vocab_size, prefix_bytes=prefix_bytes)
    engine.seconds = seconds
    return ServedModel("slow", loaded, Worker(engine, queue), 0)


def fast_models(folder: Path) -> dict[str, ServedModel]:
    """The model of a folder, served as `small`."""
    return {"small": slow_model(folder, seconds=0)}


@dataclass
class Response:
    """A complete HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The server-sent events, parsed; `[DONE]` as a string."""
        blocks = [block for block in self.body.decode().split("\n\n") if block]
        assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
        return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


@dataclass
class RunningServer:
    """A running server with its application and models."""

    port: int
    app: Application
    models: Mapping[str, ServedModel]
    server: Server
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
        """Send a request on a new connection. A body that is not bytes is sent as JSON."""
        fields = dict(self.headers)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            fields["content-type"] = "application/json"
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, fields | dict(headers or {}))
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Response(response.status, received, response.read())

    def post(self, path: str, **body: Any) -> Response:
        return self.request("POST", path, body)

    def complete(self, prompt: Any = "the cat", **body: Any) -> Response:
        """Request a completion; of the first model if none is named."""
        return self.post("/v1/completions", **{"model": next(iter(self.models)), "prompt": prompt} | body)

    def text(self, prompt: Any = "the cat", **body: Any) -> str:
        """Request a completion and return its text."""
        response = self.complete(prompt, **body)
        assert response.status == 200, response.body
        return str(response.json["choices"][0]["text"])

    def view(self, name: str, model: str | None = None, **options: Any) -> Any:
        """Request a view of the lens; of the first model if none is named."""
        response = self.post(f"/lens/{name}", model=model or next(iter(self.models)), **options)
        assert response.status == 200, response.body
        return response.json

    def gpt(self, name: str) -> GPT:
        return self.models[name].checkpoint.model

    def tokenizer(self, name: str) -> Tokenizer:
        return self.models[name].checkpoint.tokenizer

    def is_idle(self) -> bool:
        """Whether no text is generated or queued."""
        return all(each.worker.engine.running == each.worker.waiting == 0 for each in self.models.values())


@contextlib.contextmanager
def run_server(
    models: Mapping[str, ServedModel], limits: Limits = LIMITS, host: str = "127.0.0.1", **options: Any
) -> Iterator[RunningServer]:
    """Serve models in a thread of this process. `options` are those of `build_app`."""
    listener = listen("127.0.0.1", 0)
    app = build_app(models, limits, host, **options)
    started = threading.Event()
    server = Server(app.asgi, app.drain, limits, started.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert started.wait(30)
        yield RunningServer(listener.getsockname()[1], app, models, server)
    finally:
        server.should_exit = True
        thread.join(30)
        for model in models.values():
            model.worker.close()
    assert not thread.is_alive()


@contextlib.contextmanager
def serve_each_tokenizer(folder: Path) -> Iterator[RunningServer]:
    """Serve three models with random weights, named for their tokenizers: `char`, `byte` and `bpe`."""
    models = {
        name: load_model(name, write_checkpoint(folder / name, spec, end_of_text=name == "bpe"), SETTINGS)
        for name, spec in (("char", "char"), ("byte", "byte"), ("bpe", "bpe:300"))
    }
    with run_server(models) as running:
        yield running


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition; fail if it is not met in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds} s"
        time.sleep(0.005)


def exchange_bytes(server: RunningServer, *sent: bytes, wait: float = 30) -> bytes:
    """Send raw bytes and return what the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as client:
        for each in sent:
            client.sendall(each)
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    received = b""
    try:
        while data := client.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def raw_error_message(received: bytes, status: int) -> str:
    """The message of an error response that `exchange_bytes` returned."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), received
    assert b"connection: close" in head.lower()
    return str(json.loads(body)["error"]["message"])


def completion_request(server: RunningServer, **body: Any) -> bytes:
    """The bytes of a completion request."""
    content = json.dumps({"model": next(iter(server.models)), "prompt": "the"} | body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n%s" % (len(content), content)


def error_message(response: Response, status: int) -> str:
    """The message of an error response."""
    assert response.status == status, response.body
    return str(response.json["error"]["message"])


def openai_error(response: Response, status: int, param: str | None = None, code: str | None = None) -> str:
    """The message of an error response, which must have OpenAI's form."""
    message = error_message(response, status)
    assert response.headers["content-type"] == "application/json"
    assert response.json.keys() == {"error"}
    error = response.json["error"]
    assert error.keys() - {"hint"} == {"message", "type", "param", "code", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    assert (error["param"], error["code"]) == (param, code)
    return message


@contextlib.contextmanager
def serve_with_prefix(server: RunningServer, prefix: str) -> Iterator[int]:
    """A proxy that shows a server under a path, as nginx's `location` does: it removes the prefix. Yields its port."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def forward(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            with contextlib.closing(server.connect()) as connection:
                connection.request(self.command, self.path.removeprefix(prefix), body, dict(self.headers))
                response = connection.getresponse()
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("connection", "close")
                self.end_headers()
                while data := response.read1():
                    self.wfile.write(data)
            self.close_connection = True

        do_GET = do_POST = forward  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy.server_port
        finally:
            proxy.shutdown()
            thread.join()
