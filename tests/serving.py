"""A server for tests: small models with sharp opinions, in this process on a free port, and a plain client.

What a test wants to know of the inside (slots, tokens, the guard) it finds in `Running`.
"""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from octavo import checkpoint, tokenizers
from octavo.generation.engine import Engine
from octavo.model import GPT
from octavo.server import listen
from octavo.server.app import build
from octavo.server.connection import Server
from octavo.server.guard import Guard
from octavo.server.limits import Limits
from octavo.server.worker import Served, Worker
from octavo.settings import resolve

TEXT = "the cat sat on the mat, and the rat sat on the hat. café naïve €5!\n" * 30
SMALL = Limits(prefix_bytes=1 << 20)
BLOCK = 64


def write(folder: Path, tokenizer: str, seed: int = 3) -> Path:
    """A checkpoint of random weights, large enough that its likeliest token stands out."""
    made = tokenizers.build(tokenizer, TEXT)
    settings = resolve(vocab_size=made.vocab_size, n_layer=2, n_head=2, n_embd=32, block_size=BLOCK)
    model = GPT(settings, torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    checkpoint.save(folder, model, made, settings, {"step": 0})
    return folder


class SlowEngine(Engine):
    """An engine whose every step takes a while, as a large model's does."""

    seconds = 0.02

    def step(self) -> bool:
        worked = super().step()
        if worked:
            time.sleep(self.seconds)
        return worked


def slow(folder: Path, slots: int = 8, limits: Limits = SMALL, seconds: float = 0.02) -> Served:
    """A model that is served slowly."""
    loaded = checkpoint.load(folder)
    engine = SlowEngine(loaded.model, slots, vocab_size=loaded.tokenizer.vocab_size)
    engine.seconds = seconds
    return Served("slow", loaded, Worker(engine, limits.queue), 0)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The server-sent events, `[DONE]` as text."""
        blocks = [block for block in self.body.decode().split("\n\n") if block]
        assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
        return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


@dataclass
class Running:
    """A server that runs, with its insides."""

    port: int
    guard: Guard
    models: Mapping[str, Served]
    server: Server
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own; a body that isn't bytes is sent as JSON."""
        sent = dict(self.headers)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent["content-type"] = "application/json"
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, sent | dict(headers or {}))
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read())

    def post(self, path: str, **body: Any) -> Answer:
        return self.ask("POST", path, body)

    def complete(self, prompt: Any = "the cat", **body: Any) -> Answer:
        """Ask for a completion, of the first model if none is named."""
        return self.post("/v1/completions", **{"model": next(iter(self.models)), "prompt": prompt} | body)

    def text(self, prompt: Any = "the cat", **body: Any) -> str:
        """The one text of a completion."""
        answer = self.complete(prompt, **body)
        assert answer.status == 200, answer.body
        return str(answer.json["choices"][0]["text"])

    def idle(self) -> bool:
        """Whether no text is under way or waits."""
        return all(each.worker.engine.running == each.worker.waiting == 0 for each in self.models.values())


@contextlib.contextmanager
def running(
    models: Mapping[str, Served], limits: Limits = SMALL, host: str = "127.0.0.1", **options: Any
) -> Iterator[Running]:
    """Serve models in a thread."""
    listener = listen("127.0.0.1", 0)
    guard = build(models, limits, host, **options)
    started = threading.Event()
    server = Server(guard, started.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert started.wait(30)
        yield Running(listener.getsockname()[1], guard, models, server)
    finally:
        server.should_exit = True
        thread.join(30)
        for each in models.values():
            each.worker.close()
    assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition; fail where it doesn't come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
