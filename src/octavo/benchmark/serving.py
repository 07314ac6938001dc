"""How `octavo serve` does on this machine: in ordinary use, and with clients that mean it harm.

The server is a process of its own, the clients are in this one, over loopback. Of the attacks the tests say what comes
of them; here is how long it takes.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo import checkpoint, tokenizers
from octavo.benchmark.generation import untrained_model
from octavo.errors import OctavoError
from octavo.runs import find_checkpoint
from octavo.settings import Settings

CLIENTS, TRICKLING = 4, 50
HELD = 8 + 64  # the command's defaults: texts at once, and waiting
_ABSURD = {  # each must be refused before anything is made of it
    "n=10^6": {"n": 10**6},
    "max_tokens=10^9": {"max_tokens": 10**9},
    "logprobs=10^6": {"logprobs": 10**6},
}
_HUGE = 100 << 20


@dataclass(frozen=True)
class ServeBenchmark:
    """Serving here, in seconds."""

    ready_seconds: float  # from the start of the process until /ready says so, median
    first_token_seconds: float  # of a stream with `CLIENTS` at once, median
    gap_seconds: float  # between the tokens of a stream with `CLIENTS` at once, median
    gap_p95_seconds: float
    gap_ratio: float
    tokens_per_second: float  # of all these streams
    refused_seconds: dict[str, float]  # the slowest answer to each absurd request
    honest_p95_seconds: float  # of short requests, one after the other
    honest_p95_trickling_seconds: float  # with `TRICKLING` clients that send a byte at a time
    overload: dict[int, int]  # answers to ten times more requests at once than the server holds, by status
    drain_seconds: float  # from SIGTERM, with streams under way, to the end


def serve(run: str | Path | None, settings: Settings, quantize: str = "none", rounds: int = 5,
          tell: Callable[[str], None] = lambda line: None) -> ServeBenchmark:  # fmt: skip
    """Start servers of a RUN, or of an untrained model, and time them."""
    if rounds < 1:
        raise OctavoError(f"{rounds} rounds can't be timed", "--rounds 5")
    with contextlib.ExitStack() as stack:
        folder = (
            find_checkpoint(run)
            if run
            else _written(settings, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        )
        starts = []
        for _ in range(rounds):
            with _server(folder, quantize) as (_, seconds):
                starts.append(seconds)
        tell(f"ready after {statistics.median(starts):.2f} s; {rounds} rounds of {CLIENTS} streams, and attacks")
        process = stack.enter_context(_server(folder, quantize))[0]
        return asyncio.run(_measured(process, folder.name, rounds, statistics.median(starts)))


async def _measured(process: "_Process", model: str, rounds: int, ready: float) -> ServeBenchmark:
    block_size = json.loads((await process.ask("/v1/models"))[1])["data"][0]["max_model_len"]
    new = max(2, min(150, block_size - 20))
    body = {"model": model, "prompt": "abcdefgh", "max_tokens": new, "stream": True}
    await process.stream(body)
    firsts, gaps, rates = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        streams = await asyncio.gather(*(process.stream(body | {"seed": n}) for n in range(CLIENTS)))
        rates.append(sum(len(times) for times in streams) / (time.perf_counter() - start))
        firsts += [times[0] - start for times in streams]
        gaps += [after - before for times in streams for before, after in itertools.pairwise(times)]
    refused = {
        name: max([(await process.ask("/v1/completions", body | change))[2] for _ in range(20)])
        for name, change in _ABSURD.items()
    }
    refused["a body of 100 MB"] = max([(await process.ask("/v1/completions", None, _HUGE))[2] for _ in range(20)])
    short = {"model": model, "prompt": "abc", "max_tokens": 4}
    honest = await _honest(process, short)
    async with _trickling(process):
        trickled = await _honest(process, short)
    long = body | {"stream": False}
    answers = await asyncio.gather(*(process.ask("/v1/completions", long) for _ in range(10 * HELD)))
    leaving = [asyncio.create_task(process.stream(body)) for _ in range(CLIENTS)]
    await asyncio.sleep(0.05)
    start = time.perf_counter()
    process.end()
    await asyncio.gather(*leaving)
    await asyncio.to_thread(process.wait)
    ordered = sorted(gaps)
    p95 = ordered[int(0.95 * len(ordered))]
    return ServeBenchmark(
        ready_seconds=ready, first_token_seconds=statistics.median(firsts), gap_seconds=statistics.median(gaps),
        gap_p95_seconds=p95, gap_ratio=p95 / statistics.median(gaps), tokens_per_second=statistics.median(rates),
        refused_seconds=refused, honest_p95_seconds=honest, honest_p95_trickling_seconds=trickled,
        overload=dict(Counter(status for status, *_ in answers)), drain_seconds=time.perf_counter() - start,
    )  # fmt: skip


async def _honest(process: "_Process", body: dict[str, Any]) -> float:
    """The 95th percentile of a hundred short requests."""
    return sorted([(await process.ask("/v1/completions", body))[2] for _ in range(100)])[94]


@contextlib.asynccontextmanager
async def _trickling(process: "_Process") -> AsyncIterator[None]:
    """Clients that send a request's headers one byte at a time."""

    async def trickle() -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", process.port)
                for byte in b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 1000:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(trickle()) for _ in range(TRICKLING)]
    await asyncio.sleep(0.5)
    yield
    for task in tasks:
        task.cancel()


class _Process:
    """A server under way, and a client's words to it."""

    def __init__(self, started: "subprocess.Popen[str]", port: int) -> None:
        self.started, self.port = started, port

    async def ask(self, path: str, body: dict[str, Any] | None = None, size: int = 0) -> tuple[int, bytes, float]:
        """Status, body and seconds of a request: GET, or POST with a body, or with the announcement of `size` bytes."""
        start = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = b"" if body is None else json.dumps(body).encode()
        method = "POST" if content or size else "GET"
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                     f"Content-Type: application/json\r\nContent-Length: {size or len(content)}\r\n\r\n"
                     .encode() + content)  # fmt: skip
        head = await reader.readuntil(b"\r\n\r\n")
        seconds = time.perf_counter() - start
        answer = b"" if size else await reader.read()
        seconds = seconds if size else time.perf_counter() - start
        writer.close()
        return int(head.split()[1]), answer, seconds

    async def stream(self, body: dict[str, Any]) -> list[float]:
        """When each event with a token came."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = json.dumps(body).encode()
        writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     f"Content-Length: {len(content)}\r\n\r\n".encode() + content)  # fmt: skip
        times = []
        async for line in reader:
            if line.startswith(b"data: {") and b'"text":""' not in line:
                times.append(time.perf_counter())
            if line.startswith(b"data: [DONE]"):
                break
        writer.close()
        return times

    def end(self) -> None:
        """Ask it to end."""
        self.started.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Until it has."""
        self.started.wait(60)


@contextlib.contextmanager
def _server(folder: Path, quantize: str) -> Iterator[tuple[_Process, float]]:
    """A server, and how long it took until it was ready."""
    command = [
        sys.executable,
        "-m",
        "octavo",
        "serve",
        str(folder),
        "--port",
        "0",
        "--json",
        "--quantize",
        quantize,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "OCTAVO_API_KEY"}
    start = time.perf_counter()
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        if not line:
            raise OctavoError("the server did not start", f"octavo serve {folder}")
        process = _Process(started, int(json.loads(line)["url"].split(":")[2].split("/")[0]))
        while asyncio.run(process.ask("/ready"))[0] != 200:
            time.sleep(0.01)
        yield process, time.perf_counter() - start
    finally:
        started.terminate()
        started.wait(60)


def _written(settings: Settings, folder: Path) -> Path:
    """The checkpoint of an untrained model of ASCII's characters: each token is a piece of text, and so an event."""
    tokenizer = tokenizers.build("char", string.printable)
    settings = dataclasses.replace(settings, vocab_size=tokenizer.vocab_size)
    checkpoint.save(folder / "untrained", untrained_model(settings, torch.device("cpu")), tokenizer, settings, {})
    return folder / "untrained"
