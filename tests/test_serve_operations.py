"""What an operator sees and sets: the log, usage and rate limits of keys, the path prefix of a proxy."""

import dataclasses
import io
import json
import logging
import os
import re
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.server.client import RateLimits, TokenBucket
from octavo.server.log import logging_to_stderr
from octavo.server.served_model import ServedModel
from serving import RunningServer, fast_models, openai_error, run_server, serve_with_prefix, wait_until

KEYS = {"ann": "secret-of-ann", "bob": "secret-of-bob"}


@pytest.fixture(scope="module")
def server(char_model: Path) -> Iterator[RunningServer]:
    """A server at /octavo with two keys; requests have that of `ann`."""
    with run_server(fast_models(char_model), keys=KEYS, root_path="/octavo") as running:
        running.headers["authorization"] = f"Bearer {KEYS['ann']}"
        yield running


# The log


def logged(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    """The lines of the log. A request is logged after its response is complete, so the last may not be there yet."""
    lines: list[str] = []
    while len(lines) < count:
        lines += capsys.readouterr().err.splitlines()
    return lines


def test_the_log_has_a_json_object_for_each_request(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a prompt, a text or a key. A path cannot forge a line."""
    with logging_to_stderr("json", "debug"):
        server.complete("the secret cat", max_tokens=3)
        rejected = server.request("GET", '/no%0Awhere"?key=hidden', headers={"authorization": "Bearer wrong-key"})
        server.request("GET", "/health", headers={"x-request-id": "mine"})
        lines = logged(capsys, 3)
    post, wrong, probe = map(json.loads, lines)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", post.pop("time"))
    assert post.pop("milliseconds") > 0
    assert post.pop("bytes") > 100
    assert re.fullmatch(r"req_\w{24}", post.pop("request_id"))
    expected = {"method": "POST", "path": "/v1/completions", "status": 200, "key": "ann"}
    assert post == {"level": "info", "message": "request"} | expected
    assert (wrong["status"], wrong["path"], wrong["key"]) == (401, '/no%0Awhere"', None)
    assert wrong["request_id"] == rejected.json["error"]["request_id"]
    assert (probe["level"], probe["request_id"]) == ("debug", "mine")
    assert not re.search("secret|hidden|wrong-key", "".join(lines))


def test_a_log_for_people_leaves_out_what_the_page_asks_for(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to_stderr("text", "info"):
        server.request("GET", "/lens")
        server.request("GET", "/nowhere")
        server.complete(max_tokens=1)
        [wrong, post] = logged(capsys, 2)
    assert re.search(r"Z info request method=GET path=/nowhere status=404 .* key=ann request_id=req_", wrong)
    assert "POST" in post


def test_a_failure_of_the_server_is_logged_with_its_traceback(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says the id of the request by which the log has it."""
    monkeypatch.setattr(ServedModel, "step", property(lambda self: 1 / 0))
    with logging_to_stderr("json", "warning"):
        error = server.request("GET", "/v1/models").json["error"]
        [line] = [json.loads(line) for line in logged(capsys, 1)]
    assert "ZeroDivisionError" in line["traceback"]
    assert error["request_id"].startswith("req_")
    logging.getLogger("octavo.server").warning("not written any more")
    assert capsys.readouterr().err in ("", "not written any more\n")


def test_what_a_library_logs_is_written_by_the_same_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """Python itself would write it in the thread that serves."""
    with logging_to_stderr("json", "info"):
        logging.getLogger("asyncio").warning("socket.send() raised exception.")
        logging.getLogger("octavo.server").info("once")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]  # all: the thread has ended
    assert [line["message"] for line in lines] == ["socket.send() raised exception.", "once"]


def test_a_record_whose_arguments_do_not_fit_is_written_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("json", "info"):
        logging.getLogger("uvicorn.error").warning("%d lines of %s", "three")
        logging.getLogger("octavo.server").info("once")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in lines] == ["%d lines of %s", "once"]


def test_a_log_that_nobody_reads_keeps_lines_but_no_objects_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    class Body:
        pass

    body = Body()
    alive = weakref.ref(body)
    reader, writer = os.pipe()
    with open(reader, "rb") as read_end, open(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr("sys.stderr", pipe)
        with logging_to_stderr("text", "info"):
            for _ in range(2000):
                logging.getLogger("octavo.server").info("more than a pipe holds: %s", body)
            del body
            assert alive() is None
        os.set_blocking(reader, False)
        wait_until(lambda: not read_end.read() and not any(each.name == "log" for each in threading.enumerate()))


def test_a_pipe_that_nobody_reads_does_not_stop_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as read_end, open(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr("sys.stderr", pipe)
        with logging_to_stderr("text", "info"):
            for _ in range(20_000):
                logging.getLogger("octavo.server").info("more than a pipe holds")
        os.set_blocking(reader, False)
        # The thread still waits to write: what is read now lets it end.
        wait_until(lambda: not read_end.read() and not any(each.name == "log" for each in threading.enumerate()))


@pytest.mark.parametrize("is_closed", [False, True])
def test_without_stderr_the_server_runs_without_a_log(monkeypatch: pytest.MonkeyPatch, is_closed: bool) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stderr", stream if is_closed else None)
    with logging_to_stderr("text", "info"):
        logging.getLogger("octavo.server").info("once")
        wait_until(lambda: not any(each.name == "log" and not each.is_alive() for each in threading.enumerate()))
    wait_until(lambda: not any(each.name == "log" for each in threading.enumerate()))


# Usage of keys


def metric(server: RunningServer, name: str) -> float:
    page = server.request("GET", "/metrics").body.decode()
    values = [line.rpartition(" ")[2] for line in page.splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else 0.0


def test_metrics_have_the_usage_of_each_key_by_its_name(server: RunningServer) -> None:
    names = [f'octavo_key_{what}_total{{key="bob"}}' for what in ("requests", "prompt_tokens", "generated_tokens")]
    before = [metric(server, name) for name in names]
    as_bob = {"authorization": f"Bearer {KEYS['bob']}", "content-type": "application/json"}
    body = json.dumps({"prompt": "the cat", "max_tokens": 5, "n": 2}).encode()
    usage = server.request("POST", "/v1/completions", body, as_bob).json["usage"]
    server.request("GET", "/v1/models", headers=as_bob)  # computes nothing
    increases = [metric(server, name) - old for name, old in zip(names, before, strict=True)]
    assert increases == [1, usage["prompt_tokens"], 10]
    assert not any(key in server.request("GET", "/metrics").body.decode() for key in KEYS.values())


@pytest.mark.parametrize("limits", [RateLimits(requests=2), RateLimits(tokens=20)])
def test_a_key_at_its_rate_limit_is_rejected_until_the_minute_is_over(char_model: Path, limits: RateLimits) -> None:
    """Other keys, and requests that compute nothing, are not."""
    with run_server(fast_models(char_model), keys=KEYS, rate_limits=limits) as server:
        headers: dict[str, dict[str, Any]] = {name: {"authorization": f"Bearer {key}"} for name, key in KEYS.items()}
        body = json.dumps({"prompt": "the cat", "max_tokens": 5}).encode()

        def complete(key: str) -> Any:
            return server.request("POST", "/v1/completions", body, headers[key] | {"content-type": "application/json"})

        assert [complete("ann").status for _ in range(2)] == [200, 200]
        rejected = complete("ann")
        message = openai_error(rejected, 429, code="rate_limit_exceeded")
        assert f"{limits.requests or limits.tokens} {'requests' if limits.requests else 'tokens'}" in message
        assert 1 <= int(rejected.headers["retry-after"]) <= 60
        assert complete("bob").status == 200
        assert server.request("GET", "/v1/models", headers=headers["ann"]).status == 200
        server.headers |= headers["ann"]
        assert metric(server, 'octavo_key_rejected_total{key="ann"}') == 1


def test_a_token_bucket_refills_steadily() -> None:
    now = 0.0
    bucket = TokenBucket(60, lambda: now)
    bucket.take(100)
    assert bucket.level == -40
    assert bucket.seconds_until(1) == 41
    now = 50.0
    assert bucket.level == 10
    now = 5000.0
    assert (bucket.level, bucket.seconds_until(1)) == (60, 0)


# Behind a proxy


def test_the_root_path_is_a_prefix_that_may_be_there(server: RunningServer) -> None:
    """Some proxies remove it, others do not. The page's addresses are relative, so its own needs a slash at the end."""
    for path in ("/health", "/v1/models", "/lens", "/"):
        direct, prefixed = server.request("GET", path), server.request("GET", f"/octavo{path}")
        assert (direct.status, direct.body) == (prefixed.status, prefixed.body) == (200, direct.body)
    redirect = server.request("GET", "/octavo")
    assert (redirect.status, redirect.headers["location"]) == (308, "/octavo/")
    for path in ("/octavolens", "/octavo/octavo/lens", "/other/lens"):
        assert server.request("GET", path).status == 404
    assert server.request("GET", "/octavo/lens", headers={"authorization": ""}).status == 401
    assert server.request("GET", "/octavo/health", headers={"authorization": ""}).status == 200
    assert server.request("GET", "/openapi.json").json["servers"] == [{"url": "/octavo"}]


def test_a_proxy_that_removes_a_prefix_needs_no_setting(char_model: Path) -> None:
    with run_server(fast_models(char_model)) as direct, serve_with_prefix(direct, "/deep/octavo") as port:
        server = dataclasses.replace(direct, port=port)
        assert server.request("GET", "/health").status == 404
        assert server.post("/deep/octavo/v1/completions", prompt="the", max_tokens=2).status == 200
        *_, end = server.post("/deep/octavo/v1/completions", prompt="the", max_tokens=2, stream=True).events
        assert end == "[DONE]"
