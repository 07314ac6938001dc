"""The speed of `octavo serve` on this machine: in normal use, and under attack.

The server is a separate process; the clients are in this one, over loopback. The tests check that attacks fail; here
their effect is timed. The clients use sockets rather than httpx, which adds a millisecond to a request of one
millisecond, and cannot announce a body without sending it.
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
from octavo.runs import RunLike, find_checkpoint
from octavo.settings import Settings

CLIENTS, SLOW_CLIENTS = 4, 50
SLOTS, QUEUE = 8, 64
_EXCESSIVE_FIELDS = {  # each must be rejected before anything is allocated for it
    "n=10^6": {"n": 10**6},
    "max_tokens=10^9": {"max_tokens": 10**9},
    "logprobs=10^6": {"logprobs": 10**6},
}
_EXCESSIVE_BODY_BYTES = 100 * 10**6


@dataclass(frozen=True)
class ServeBenchmark:
    """Latency, throughput and behavior under attack of a server on this machine. Times are in seconds."""

    ready_seconds: float  # from the start of the process to a successful /ready, median
    first_token_seconds: float  # time to first token of `CLIENTS` concurrent streams, median
    inter_token_seconds: float  # inter-token latency of these streams, median
    inter_token_p95_seconds: float
    inter_token_ratio: float  # 95th percentile to median
    tokens_per_second: float  # of these streams together
    rejected_seconds: dict[str, float]  # the slowest response to each excessive request
    short_p95_seconds: float  # of short requests, one after another
    short_p95_trickling_seconds: float  # the same during a slowloris attack by `SLOW_CLIENTS` clients
    overload: dict[int, int]  # responses to ten times as many requests as `SLOTS` and `QUEUE` hold, by status
    drain_seconds: float  # from SIGTERM, with streams in progress, to the exit


def benchmark_serving(
    run: RunLike | None,
    settings: Settings,
    quantize: str = "none",
    rounds: int = 5,
    report: Callable[[str], None] = lambda line: None,
) -> ServeBenchmark:
    """Time servers of a run, or of an untrained model if `run` is None. `report` receives lines of progress."""
    if rounds < 1:
        raise OctavoError(f"rounds={rounds} is not a positive number", "--rounds 5")
    with contextlib.ExitStack() as stack:
        if run is not None:
            folder = find_checkpoint(run)
        else:
            folder = _write_untrained(settings, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        starts = []
        for _ in range(rounds):
            with _start_server(folder, quantize) as (_, seconds):
                starts.append(seconds)
        report(f"ready after {statistics.median(starts):.2f} s; {rounds} rounds of {CLIENTS} streams, and attacks")
        server = stack.enter_context(_start_server(folder, quantize))[0]
        return asyncio.run(_measure(server, folder.name, rounds, statistics.median(starts)))


async def _measure(server: "_Server", model: str, rounds: int, ready: float) -> ServeBenchmark:
    block_size = json.loads((await server.ask("/v1/models"))[1])["data"][0]["max_model_len"]
    new_tokens = max(2, min(150, block_size - 20))
    body = {"model": model, "prompt": "abcdefgh", "max_tokens": new_tokens, "stream": True}
    await server.stream(body)
    first_tokens, latencies, rates = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        streams = await asyncio.gather(*(server.stream(body | {"seed": n}) for n in range(CLIENTS)))
        rates.append(sum(len(times) for times in streams) / (time.perf_counter() - start))
        first_tokens += [times[0] - start for times in streams]
        latencies += [after - before for times in streams for before, after in itertools.pairwise(times)]
    rejected = {
        name: max([(await server.ask("/v1/completions", body | change))[2] for _ in range(20)])
        for name, change in _EXCESSIVE_FIELDS.items()
    }
    rejected["a body of 100 MB"] = max(
        [(await server.ask("/v1/completions", None, _EXCESSIVE_BODY_BYTES))[2] for _ in range(20)]
    )
    short = {"model": model, "prompt": "abc", "max_tokens": 4}
    short_p95 = await _time_short_requests(server, short)
    async with _slowloris_attack(server):
        trickling_p95 = await _time_short_requests(server, short)
    long = body | {"stream": False}
    responses = await asyncio.gather(*(server.ask("/v1/completions", long) for _ in range(10 * (SLOTS + QUEUE))))
    running = [asyncio.create_task(server.stream(body)) for _ in range(CLIENTS)]
    await asyncio.sleep(0.05)
    start = time.perf_counter()
    server.terminate()
    await asyncio.gather(*running)
    await asyncio.to_thread(server.wait)
    ordered = sorted(latencies)
    p95 = ordered[int(0.95 * len(ordered))]
    return ServeBenchmark(
        ready_seconds=ready,
        first_token_seconds=statistics.median(first_tokens),
        inter_token_seconds=statistics.median(latencies),
        inter_token_p95_seconds=p95,
        inter_token_ratio=p95 / statistics.median(latencies),
        tokens_per_second=statistics.median(rates),
        rejected_seconds=rejected,
        short_p95_seconds=short_p95,
        short_p95_trickling_seconds=trickling_p95,
        overload=dict(Counter(status for status, *_ in responses)),
        drain_seconds=time.perf_counter() - start,
    )


async def _time_short_requests(server: "_Server", body: dict[str, Any]) -> float:
    """The 95th percentile of a hundred requests."""
    return sorted([(await server.ask("/v1/completions", body))[2] for _ in range(100)])[94]


@contextlib.asynccontextmanager
async def _slowloris_attack(server: "_Server") -> AsyncIterator[None]:
    """Run `SLOW_CLIENTS` clients that send the headers of a request one byte at a time."""

    async def trickle() -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                for byte in b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 1000:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(trickle()) for _ in range(SLOW_CLIENTS)]
    await asyncio.sleep(0.5)
    yield
    for task in tasks:
        task.cancel()


class _Server:
    """A server process, and a client for it."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.port = process, port

    async def ask(
        self, path: str, body: dict[str, Any] | None = None, announced_bytes: int = 0
    ) -> tuple[int, bytes, float]:
        """Send a request. Returns the status, the response's body and the seconds it took.

        It is a POST if there is a `body`, or if a body of `announced_bytes` is only announced by its Content-Length.
        """
        start = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = b"" if body is None else json.dumps(body).encode()
        method = "POST" if content or announced_bytes else "GET"
        writer.write(_head(method, path, announced_bytes or len(content), "close") + content)
        head = await reader.readuntil(b"\r\n\r\n")
        seconds = time.perf_counter() - start
        response_body = b""
        if not announced_bytes:  # else the server may wait for the announced body
            response_body = await reader.read()
            seconds = time.perf_counter() - start
        writer.close()
        return int(head.split()[1]), response_body, seconds

    async def stream(self, body: dict[str, Any]) -> list[float]:
        """The times at which events with text arrive."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = json.dumps(body).encode()
        writer.write(_head("POST", "/v1/completions", len(content), "keep-alive") + content)
        times = []
        async for line in reader:
            if line.startswith(b"data: {") and b'"text":""' not in line:
                times.append(time.perf_counter())
            if line.startswith(b"data: [DONE]"):
                break
        writer.close()
        return times

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        self.process.wait(60)


def _head(method: str, path: str, length: int, connection: str) -> bytes:
    fields = {
        "Host": "localhost",
        "Connection": connection,
        "Content-Type": "application/json",
        "Content-Length": str(length),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode()


@contextlib.contextmanager
def _start_server(folder: Path, quantize: str) -> Iterator[tuple[_Server, float]]:
    """Run a server process; yield it and the seconds until it was ready."""
    options = ["--port", "0", "--json", "--quantize", quantize, "--slots", str(SLOTS), "--queue", str(QUEUE)]
    command = [sys.executable, "-m", "octavo", "serve", str(folder), *options]
    environment = {name: value for name, value in os.environ.items() if name != "OCTAVO_API_KEY"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise OctavoError("the server did not start", f"octavo serve {folder}")
        server = _Server(process, int(json.loads(line)["url"].split(":")[2].split("/")[0]))
        while asyncio.run(server.ask("/ready"))[0] != 200:
            time.sleep(0.01)
        yield server, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(60)


def _write_untrained(settings: Settings, folder: Path) -> Path:
    """The checkpoint of an untrained model with a token for each ASCII character, so that each token is an event."""
    tokenizer = tokenizers.build("char", string.printable)
    settings = dataclasses.replace(settings, vocab_size=tokenizer.vocab_size)
    checkpoint.save(folder / "untrained", untrained_model(settings, torch.device("cpu")), tokenizer, settings, {})
    return folder / "untrained"
