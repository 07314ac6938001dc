"""Mixed load on a server and thousands of training steps: memory, descriptors and threads do not grow.

`make torture` serves for 30 minutes (OCTAVO_SOAK_SECONDS sets another duration) and trains for 10,000 steps
(OCTAVO_SOAK_STEPS). In CI both take a few seconds.
"""

import contextlib
import http.client
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from octavo.runs import Run
from reliability.torture import IS_TORTURE, SETTINGS, TEXT, Report, start

SECONDS = float(os.environ.get("OCTAVO_SOAK_SECONDS", 1800 if IS_TORTURE else 3))
STEPS = int(os.environ.get("OCTAVO_SOAK_STEPS", 10_000 if IS_TORTURE else 200))
CLIENTS = 4
WARM_UP_REQUESTS = 2000 if IS_TORTURE else 200
MAX_MEMORY_RATIO = 1.05  # to the memory after the warm-up
MAX_NEW = 8  # threads or descriptors: pools may not have all threads after the warm-up, and a leak would be hundreds
JSON = {"content-type": "application/json"}


class Usage(NamedTuple):
    """What a process holds."""

    memory: int  # resident bytes
    descriptors: int
    threads: int

    @classmethod
    def of(cls, process: psutil.Process) -> "Usage":
        with process.oneshot():
            return cls(process.memory_info().rss, process.num_fds(), process.num_threads())


def assert_no_growth(before: Usage, after: Usage) -> dict[str, int]:
    """Assert that a process does not hold much more than before. Returns the growth."""
    assert after.memory <= MAX_MEMORY_RATIO * before.memory, (before, after)
    assert after.descriptors <= before.descriptors + MAX_NEW, (before, after)
    assert after.threads <= before.threads + MAX_NEW, (before, after)
    return {
        "KiB_more_memory": (after.memory - before.memory) >> 10,
        "more_descriptors": after.descriptors - before.descriptors,
        "more_threads": after.threads - before.threads,
    }


# The server


class Client:
    """A client that sends one random request after another."""

    def __init__(self, port: int, run: str, seed: int) -> None:
        self.port, self.run, self.random = port, run, random.Random(seed)
        self.statuses: Counter[int] = Counter()

    def send_one(self) -> None:
        kinds: list[Callable[[], object]] = [
            self.complete,
            self.stream,
            self.abandon,
            self.view,
            self.read_run,
            self.tokenize,
            self.send_nonsense,
        ]
        self.random.choice(kinds)()

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, JSON)
            response = connection.getresponse()
            self.statuses[response.status] += 1
            return response.read()

    def completion(self, **fields: Any) -> bytes:
        number = self.random.randrange
        prompt = " ".join(self.random.choices(("the", "cat", "sat", "on", "a", "mat"), k=1 + number(8)))
        body = {
            "model": self.run,
            "prompt": prompt,
            "max_tokens": number(16),
            "n": 1 + number(3),
            "echo": number(2) > 0,
        }
        return json.dumps(body | {"logprobs": self.random.choice((None, 0, 3))} | fields).encode()

    def complete(self) -> None:
        self.request("POST", "/v1/completions", self.completion(best_of=self.random.choice((None, 5))))

    def stream(self) -> None:
        assert self.request("POST", "/v1/completions", self.completion(stream=True)).endswith(b"data: [DONE]\n\n")

    def abandon(self) -> None:
        """Disconnect within the head, within the body, before the response, or after a part of it."""
        body = self.completion(stream=self.random.random() < 0.7, max_tokens=30)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sent = head + b"content-length: %d\r\n\r\n%s" % (len(body), body)
        cut = self.random.choice((self.random.randrange(len(sent)), len(sent)))
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(sent[:cut])
            if cut == len(sent) and self.random.random() < 0.7:
                connection.recv(self.random.randrange(1, 600))
        self.statuses[0] += 1

    def view(self) -> None:
        view = self.random.choice(("tokens", "attention", "next_token", "logit_lens", "surprisal", "ablation"))
        self.request("POST", f"/lens/{view}", json.dumps({"text": "the cat sat on the mat"}).encode())

    def read_run(self) -> None:
        after = self.random.randrange(30)
        path = self.random.choice(("/runs", f"/runs/{self.run}/metrics?after={after}", "/metrics", "/", "/lens"))
        self.request("GET", path)

    def tokenize(self) -> None:
        tokens = json.loads(self.request("POST", "/tokenize", b'{"prompt": "the cat sat on the mat"}'))["tokens"]
        self.request("POST", "/detokenize", json.dumps({"tokens": tokens}).encode())

    def send_nonsense(self) -> None:
        bodies = (b"{", b"[]", b'{"model": 5}', self.completion(n=0), self.completion(logit_bias={"x": 1}))
        self.request("POST", self.random.choice(("/v1/completions", "/lens/tokens")), self.random.choice(bodies))


@pytest.fixture
def server(bpe_run: Run, tmp_path: Path) -> Iterator[tuple[psutil.Process, int]]:
    """`octavo serve` in another process, and its port. Its prefix cache is soon full."""
    process = start(["serve", bpe_run.folder, "--port", 0, "--prefix-cache", 1, "--json"], tmp_path)
    assert process.stdout is not None
    try:
        port = int(json.loads(process.stdout.readline())["url"].rpartition(":")[2].removesuffix("/v1"))
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_mixed_load_on_a_server_leaks_nothing(server: tuple[psutil.Process, int], bpe_run: Run, report: Report) -> None:
    process, port = server
    clients = [Client(port, bpe_run.folder.name, seed) for seed in range(CLIENTS)]

    def run_clients(is_done: Callable[[], bool]) -> None:
        def send_all(client: Client) -> None:
            while not is_done():
                client.send_one()

        threads = [threading.Thread(target=send_all, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def requests() -> int:
        return sum(client.statuses.total() for client in clients)

    run_clients(lambda: requests() >= WARM_UP_REQUESTS)
    before = usage_when_idle(process, port)
    deadline = time.monotonic() + SECONDS
    run_clients(lambda: time.monotonic() > deadline)
    growth = assert_no_growth(before, usage_when_idle(process, port))
    statuses = sum((client.statuses for client in clients), Counter[int]())
    assert statuses.keys() <= {0, 200, 400, 429}
    report("request of a mixed load on a server", requests(), abandoned=statuses[0], server_errors=0, **growth)


def usage_when_idle(process: psutil.Process, port: int) -> Usage:
    """What the server holds once every slot is free and every connection of a client is closed."""
    client, deadline = Client(port, "", 0), time.monotonic() + 60
    while True:
        page = client.request("GET", "/metrics").decode()
        values = [
            float(row.rpartition(" ")[2])
            for row in page.splitlines()
            if row.startswith(("octavo_slots_busy", "octavo_queue"))
        ]
        if not any(values) and len(process.net_connections()) == 1:
            return Usage.of(process)
        assert time.monotonic() < deadline, page
        time.sleep(0.1)


# Training


def test_a_long_training_leaks_nothing(tmp_path: Path, report: Report) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    every = max(50, STEPS // 40)
    frequencies = ["--eval-every", every, "--sample-every", every, "--log-every", 1]
    words = ["train", "text.txt", *SETTINGS, "--max-steps", STEPS, "--max-epochs", 0, *frequencies, "--out", "run"]
    process = start(words, tmp_path)
    observed: list[tuple[int, Usage]] = []  # steps and usage
    with ThreadPoolExecutor(1) as pool, contextlib.suppress(psutil.NoSuchProcess):
        output = pool.submit(process.communicate)  # reads on: a full pipe would stop the training
        while not output.done():
            if step := last_step(tmp_path / "run" / "metrics.jsonl"):
                observed.append((step, Usage.of(psutil.Process(process.pid))))
            time.sleep(STEPS / 20_000)
    assert process.returncode == 0, output.result()
    # Files are open and threads run now and then, so the most within a quarter is compared.
    quarters = [[usage for step, usage in observed if STEPS * i < 4 * step <= STEPS * (i + 1)] for i in (1, 3)]
    before, after = (Usage(*map(max, zip(*quarter, strict=True))) for quarter in quarters)
    report("step of one training", STEPS, **assert_no_growth(before, after))


def last_step(metrics: Path) -> int:
    """The step of the last complete line, or 0."""
    with contextlib.suppress(OSError, IndexError, ValueError), open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4000))
        return int(json.loads(file.read().split(b"\n")[-2])["step"])
    return 0
