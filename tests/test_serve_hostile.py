"""Every field of every route, with every value that a client could send in its place: a short error or an answer.

`test_serve_attack.py` attacks the bytes of HTTP and the completions; here are the other routes, the lens above all.
"""

import contextlib
import http.client
import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from octavo import views
from octavo.runs import Run
from octavo.server import lens_api, load_model
from serving import SETTINGS, RunningServer, run_server

LENGTH = 32  # the block_size of `bpe_run`
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, LENGTH - 1, LENGTH, -LENGTH, -LENGTH - 1, 10**6, -(10**9), 2**31, 2**63, 10**40),
    *(0.0, 0.5, -0.5, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", "a", "the cat", "\x00", "\ufeff", "\r\n", "\ud800", "a\udfffb", "猫", "🦉", "é" * 50, "NaN", "<|endoftext|>"),
    *("a" * 101, "a" * 5000, "a " * 50_000, "a" * 200_001),
    *([], [[]], [0], [1, 2, 3], [-1], [2**31], [10**9], [1.5], [True], [None], ["a"], ["\ud800"], ["a", 1], [["a"]]),
    *([0, 0], [5, 5], [LENGTH - 1, LENGTH], [-1, 10**6], [0] * LENGTH, [0] * (LENGTH + 1), [0] * 200_000, ["a"] * 200),
    *({}, {"a": 1}, {"": {}}, [[[[[[]]]]]]),
]
FIELDS = {
    f"/lens/{view}": ["model", "step", "text", "unknown", *views.VIEWS[view].options] for view in lens_api.SERVED_VIEWS
} | {
    "/tokenize": ["model", "prompt", "add_special_tokens", "return_token_strs"],
    "/detokenize": ["model", "tokens"],
    "/lens/no_such_view": ["text"],
    "/v1/completions": ["prompt"],
}


@pytest.fixture(scope="module")
def server(bpe_run: Run, native_cache: None) -> Iterator[RunningServer]:
    with run_server({"run": load_model("run", bpe_run.folder, SETTINGS)}, runs={"run": bpe_run}) as running:
        yield running


def assert_answered(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> int:
    """Send a request, on a connection that stays open. The response must be an answer, or an error of one message."""
    connection.request(method, path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    case = (method, path[:100], (body or b"")[:200], response.status, content[:500])
    assert response.status in (200, 400, 404, 405, 413, 429), case
    if response.status != 200:
        assert set(json.loads(content)) == {"error"}, case
        assert len(content) < 1000, case
    return response.status


@pytest.mark.parametrize("path", FIELDS)
def test_any_value_of_any_field_is_answered(
    server: RunningServer, path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(path)
    with contextlib.closing(server.connect()) as connection:
        for field in FIELDS[path]:
            for value in rng.sample(VALUES, 12):
                body = {"model": "run"} | ({"text": "the cat"} if "text" in FIELDS[path] else {}) | {field: value}
                assert_answered(connection, "POST", path, json.dumps(body).encode())
        for body in random_bodies(rng, path, 20):
            assert_answered(connection, "POST", path, body)
        assert assert_answered(connection, "GET", "/health") == 200
    assert "Traceback" not in capfd.readouterr().err


def random_bodies(rng: random.Random, path: str, count: int) -> Iterator[bytes]:
    """Bodies with several wrong fields, some of which are changed to invalid JSON."""
    for _ in range(count):
        fields = rng.sample(FIELDS[path], min(len(FIELDS[path]), 3))
        body = bytearray(json.dumps({field: rng.choice(VALUES) for field in fields}).encode())
        for _ in range(rng.choice((0, 0, 1, 3))):
            body[rng.randrange(len(body))] = rng.randrange(256)
        yield bytes(body)


def test_any_path_and_query_is_answered(server: RunningServer, capfd: pytest.CaptureFixture[str]) -> None:
    names = ["run", "no-such-run", "..", ".", "%2e%2e%2fetc", "%00", "%ff", "🦉", "a" * 3000, "metrics", "*", ""]
    numbers = ["0", "-1", "1e3", "9" * 400, str(2**53), "NaN", "", "0x1", "٣", "1&after=2", "%00"]
    paths = [f"/v1/models/{quote(name, safe='%*')}" for name in names]
    paths += [f"/{root}/{quote(name, safe='%*')}" for root in ("page", "runs", "lens", "v1") for name in names]
    paths += [f"/runs/{quote(name, safe='%*')}/metrics" for name in names]
    paths += [f"/runs/run/{quote(name, safe='%*')}" for name in names]
    paths += [f"/runs/run/metrics?after={quote(number, safe='%&=')}" for number in numbers]
    paths += [f"/tokenizer_info?model={quote(name, safe='%*')}" for name in names]
    with contextlib.closing(server.connect()) as connection:
        for path in paths:
            for method in ("GET", "POST", "DELETE"):
                assert_answered(connection, method, path)
        assert assert_answered(connection, "GET", "/health") == 200
    assert "Traceback" not in capfd.readouterr().err
