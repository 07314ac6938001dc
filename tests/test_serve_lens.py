"""The lens over HTTP: every view, its options, the checkpoints of a run, and concurrent requests."""

import contextlib
import copy
import dataclasses
import gzip
import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lenses import random_checkpoint
from octavo import lens, runs, views
from octavo.runs import Run
from octavo.server import lens_api, load_model, static_page
from octavo.server.requests import LensRequest
from octavo.settings import ModelSettings
from serving import SETTINGS, RunningServer, error_message, run_server, wait_until

TEXT = "the cat sat; <b>كتاب</b> 🦉!"


@pytest.fixture(scope="module")
def server(bpe_run: Run, byte_model: Path, native_cache: None) -> Iterator[RunningServer]:
    models = {
        name: load_model(name, folder, SETTINGS) for name, folder in (("run", bpe_run.folder), ("alone", byte_model))
    }
    with run_server(models, runs={"run": bpe_run}) as running:
        yield running


# Views

OPTIONS: dict[str, dict[str, Any]] = {
    "shapes": {"text": TEXT, "layer": 1, "head": 2},
    "tokens": {"text": TEXT},
    "position": {"word": "cat", "at": [0, 5]},
    "neighbors": {"word": "a", "top": 5, "against": "b"},
    "projection": {"words": ["a", "e"]},
    "attention": {"text": TEXT, "layer": -1, "head": 1},
    "flow": {"text": TEXT},
    "next_token": {"text": TEXT},
    "logit_lens": {"text": TEXT, "top": 3, "positions": [0, -1]},
    "contributions": {"text": TEXT, "position": 4, "token": "a"},
    "surprisal": {"text": TEXT},
    "ablation": {"text": TEXT, "layer": 0},
}


def test_all_views_of_the_table_but_verify_and_losses_are_served() -> None:
    assert set(lens_api.SERVED_VIEWS) == lens.FUNCTIONS.keys() - {"verify", "losses"}
    options = {option for view in lens_api.SERVED_VIEWS for option in views.VIEWS[view].options}
    assert LensRequest.model_fields.keys() == options | {"model", "step"}
    assert OPTIONS.keys() == set(lens_api.SERVED_VIEWS)


@pytest.mark.parametrize("view", OPTIONS)
@pytest.mark.parametrize("model", ["run", "alone"])
def test_a_view_over_http_equals_the_view_in_python(
    server: RunningServer, bpe_run: Run, monkeypatch: pytest.MonkeyPatch, model: str, view: str
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(bpe_run.folder.parent / "cache"))  # has the run's prepared text
    response = server.view(view, model, **OPTIONS[view])
    plain = json.loads(json.dumps(lens.inspect(server.models[model].checkpoint, view, **OPTIONS[view]).to_dict()))
    if view == "attention":
        assert [len(row) for row in response["weights"]] == list(range(1, len(response["tokens"]) + 1))
        padded = [row + [0] * (len(response["tokens"]) - len(row)) for row in response.pop("weights")]
        np.testing.assert_allclose(padded, plain.pop("weights"), atol=1.5e-6)
    assert response == plain


def test_a_view_takes_a_text_or_ids_and_without_either_a_text_is_generated(server: RunningServer) -> None:
    response = server.view("tokens", "alone")
    assert response["generated"]
    assert server.view("tokens", "alone", text=None, unknown=None) == response
    ids = [token["id"] for token in response["tokens"]]
    assert server.view("tokens", "alone", text=ids)["text"] == response["text"]


def test_attention_of_512_tokens_is_under_1_mb_and_its_rows_sum_to_one(tmp_path: Path, native_cache: None) -> None:
    """The attention of an untrained model is nearly uniform, which takes the most digits."""
    folder = random_checkpoint(
        tmp_path / "long", "byte", std=0.02, block_size=512, n_layer=1, n_head=2, n_embd=32
    ).folder
    served = load_model("long", folder, SETTINGS)
    with run_server({"long": served}) as running:
        text = ("To be, or not to be: that is the question. " * 12)[:512]
        for encoding, headers in (
            ("identity", {"accept-encoding": "gzip;q=0"}),
            ("gzip", {"accept-encoding": "br, gzip"}),
        ):
            response = running.request("POST", "/lens/attention", {"text": text, "head": 1}, headers)
            assert response.headers.get("content-encoding", "identity") == encoding
            assert len(response.body) < (1_000_000 if encoding == "identity" else 500_000)
            body = gzip.decompress(response.body) if encoding == "gzip" else response.body
        weights = json.loads(body)["weights"]
        assert [len(row) for row in weights] == list(range(1, 513))
        assert max(abs(sum(row) - 1) for row in weights) < 1e-9
        exact = lens.attention(served.checkpoint, text, head=1).weights
        assert max(np.abs(np.array(row) - exact[t, : t + 1]).max() for t, row in enumerate(weights)) < 1.1e-5


@pytest.mark.parametrize("row", [[0.1] * 10, [1 / 3] * 3, [1.0, 0.0], [1e-9, 1 - 1e-9], [0.9999995, 0.0000005]])
def test_rounded_attention_rows_sum_to_one(row: list[float]) -> None:
    weights = np.zeros((len(row), len(row)), np.float32)
    weights[:, 0], weights[-1] = 1, row
    assert sum(json.loads(lens_api.encode_attention(weights))[-1]) == pytest.approx(1, abs=1e-12)


def test_weights_that_are_not_finite_are_an_error_not_nan_in_json(tmp_path: Path, native_cache: None) -> None:
    loaded = random_checkpoint(tmp_path / "broken", "byte")
    served = load_model("broken", loaded.folder, SETTINGS)
    with torch.no_grad():
        served.checkpoint.model.transformer.wpe.weight.fill_(torch.nan)
    with run_server({"broken": served}) as running:
        for view in ("attention", "shapes", "position", "next_token", "logit_lens"):
            body = {"at": [0, 1]} if view == "position" else {"text": "a"}
            assert "finite" in error_message(running.post(f"/lens/{view}", **body), 400)


def test_examples_are_beginnings_of_sentences_of_the_validation_split(
    server: RunningServer, bpe_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.request("GET", "/lens/examples?model=alone").json == {"examples": []}  # it has no text
    monkeypatch.setenv("OCTAVO_CACHE", str(bpe_run.folder.parent / "cache"))
    found = server.request("GET", "/lens/examples?model=run").json["examples"]
    text = Path(server.models["run"].checkpoint.settings.source).read_text(encoding="utf-8")  # type: ignore[union-attr]
    assert all(len(each.split()) >= 3 and each in text for each in found)
    error_message(server.request("GET", "/lens/examples?model=nothing"), 404)
    refused = server.post("/lens/examples")
    error_message(refused, 405)
    assert refused.headers["allow"] == "GET"


def test_the_page_as_one_file_is_that_of_the_command_line(server: RunningServer) -> None:
    response = server.request("POST", "/lens/html", {"model": "alone", "text": "the cat", "layer": 1, "head": 0})
    assert response.headers["content-type"].startswith("text/html")
    checkpoint = server.models["alone"].checkpoint
    assert response.body.decode() == static_page.standalone_page(checkpoint, "the cat", layer=1, head=0)
    error_message(server.post("/lens/html", model="alone", text="the cat", layer=99), 400)


def test_models_are_listed_with_their_shape_and_steps(server: RunningServer, bpe_run: Run) -> None:
    listed = server.request("GET", "/lens").json
    assert listed["views"] == list(lens_api.SERVED_VIEWS)
    run, alone = listed["models"]
    steps = list(bpe_run.checkpoints)
    assert (run["id"], run["run"], run["steps"], run["tokenizer"]) == ("run", True, steps, "bpe")
    assert run["step"] == runs.step_of(bpe_run.best)  # type: ignore[union-attr]
    model = server.models["run"].checkpoint.model
    assert run["model"]["parameters"] == sum(each.numel() for each in model.parameters())
    assert run["model"]["n_embd"] == model.settings.n_embd
    assert (alone["id"], alone["run"], alone["steps"], alone["step"]) == ("alone", False, [], None)


def test_a_model_states_how_its_embeddings_were_initialized(bpe_run: Run) -> None:
    loaded = runs.load(bpe_run.folder)
    for weights, embeddings, expected in (
        ("lookback", "uniform", "sinusoidal"),
        ("noise", "uniform", "uniform"),
        ("noise", "normal", "normal"),
    ):
        settings = dataclasses.replace(loaded.settings, weight_init=weights, embedding_init=embeddings)  # type: ignore[call-arg]
        described = lens_api.describe_model("run", dataclasses.replace(loaded, settings=settings))
        assert (described.wte_init, described.wpe_init) == (embeddings, expected)
    bare = ModelSettings(vocab_size=loaded.settings.vocab_size)  # of a model that Octavo did not train
    other = lens_api.describe_model("other", dataclasses.replace(loaded, settings=bare))
    assert (other.wte_init, other.wpe_init) == (None, None)


def test_every_checkpoint_of_a_run_can_be_shown(server: RunningServer, bpe_run: Run) -> None:
    responses = []
    for step, path in [*bpe_run.checkpoints.items(), *list(bpe_run.checkpoints.items())[:1]]:
        responses.append(server.view("next_token", "run", text="the cat", step=step))
        assert responses[-1]["logits"] == lens.next_token(runs.load(path), "the cat").to_dict()["logits"]
    assert responses[0] == responses[-1] != responses[1]
    without_step = server.view("next_token", "run", text="the cat")
    assert server.view("next_token", "run", text="the cat", step=None) == without_step


def test_the_cache_holds_two_checkpoints_or_one_of_a_large_model(server: RunningServer) -> None:
    served, checkpoints = server.models["run"], lens_api.CheckpointCache()
    first, second, third = [step for step in served.steps if step != served.step][:3]
    loaded = checkpoints.get(served, first)
    checkpoints.get(served, second)
    assert checkpoints.get(served, first) is loaded
    checkpoints.get(served, third)
    assert checkpoints.get(served, first) is loaded  # `second` was evicted
    checkpoints.get(served, second)
    assert checkpoints.get(served, first) is loaded
    assert checkpoints.get(served, served.step).model is served.checkpoint.model
    os.utime(served.steps[first] / "manifest.json", ns=(0, 0))  # as if it had been rewritten
    assert checkpoints.get(served, first) is not loaded
    checkpoints = lens_api.CheckpointCache(large=1000)
    loaded = checkpoints.get(served, first)
    assert checkpoints.get(served, first) is loaded
    checkpoints.get(served, second)
    assert checkpoints.get(served, first) is not loaded


def test_views_of_a_model_on_another_device_run_on_the_cpu(server: RunningServer) -> None:
    served = server.models["run"]
    on_meta = dataclasses.replace(served.checkpoint, model=copy.deepcopy(served.checkpoint.model).to("meta"))
    checkpoint = lens_api.CheckpointCache().get(dataclasses.replace(served, checkpoint=on_meta), None)
    assert torch.equal(checkpoint.model.lm_head.weight, served.checkpoint.model.lm_head.weight)


def test_the_server_never_reads_the_source_of_a_run(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be standard input, or on the network. The server only uses prepared text."""
    from octavo.data import prepare

    opened: list[str] = []
    monkeypatch.setattr(prepare, "open_source", lambda settings, *rest: opened.append(settings.source))
    assert "data" in server.models["run"].checkpoint.info
    response = server.view("neighbors", "run", word="a", against="b")
    assert (opened, response["control"][:4]) == ([], "none")


@pytest.mark.parametrize(
    ("view", "body", "status", "expected"),
    [
        ("nothing", {}, 400, "view"),
        ("losses", {}, 400, "view"),
        ("verify", {}, 400, "view"),
        ("projection", {"text": "a"}, 400, "projection takes no text"),
        ("attention", {"word": "a"}, 400, "attention takes no word"),
        ("attention", {"layr": 1}, 400, "'layer'"),
        ("attention", {"frob": 1}, 400, "no field 'frob'"),
        ("attention", {"frob": None}, 400, "no field 'frob'"),
        ("attention", {"model": "nobody"}, 404, "no model 'nobody'"),
        ("attention", {"model": ""}, 400, "several models"),
        ("attention", {"step": 999, "model": "run"}, 404, "no checkpoint of step 999"),
        ("attention", {"step": 1, "model": "alone"}, 404, "no checkpoint of step 1"),
        ("attention", {"step": -1}, 400, "step"),
        ("attention", {"step": True}, 400, "step"),
        ("attention", {"layer": 99}, 400, "layer 99"),
        ("attention", {"layer": 10**40}, 400, "layer"),
        ("attention", {"layer": "1"}, 400, "layer"),
        ("attention", {"layer": 1.5}, 400, "layer"),
        ("attention", {"layer": True}, 400, "layer"),
        ("attention", {"head": [1]}, 400, "head"),
        ("attention", {"text": ""}, 400, "no text"),
        ("attention", {"text": 5}, 400, "token ids"),
        ("attention", {"text": [True]}, 400, "token ids"),
        ("attention", {"text": [1.5]}, 400, "token ids"),
        ("attention", {"text": []}, 400, "no text"),
        ("attention", {"text": [10**30]}, 400, "token ids"),
        ("attention", {"text": [-1]}, 400, "token ids"),
        ("attention", {"text": [999]}, 400, "no token"),
        ("attention", {"text": {"a": 1}}, 400, "token ids"),
        ("attention", {"text": [1] * 65}, 400, "block_size is 64"),
        ("tokens", {"text": "a" * 200_001}, 400, "200,000"),
        ("attention", {"text": "a\ud800"}, 400, "expected a text"),
        ("attention", {"unknown": "guess"}, 400, "unknown"),
        ("position", {"word": "a" * 101}, 400, "100"),
        ("position", {"word": ""}, 400, "empty word"),
        ("position", {"at": [1]}, 400, "2 integers"),
        ("position", {"at": [1, "2"]}, 400, "2 integers"),
        ("position", {"at": [0, 64]}, 400, "position 64"),
        ("projection", {"words": ["a"] * 21}, 400, "at most 20"),
        ("projection", {"words": ["a" * 101]}, 400, "100 characters"),
        ("projection", {"words": [1.5]}, 400, "words"),
        ("neighbors", {"top": 101}, 400, "top"),
        ("neighbors", {"top": 0}, 400, "top"),
        ("logit_lens", {"top": 51}, 400, "top=51"),
        ("logit_lens", {"positions": [0] * 4097}, 400, "4,096"),
        ("logit_lens", {"positions": 3}, 400, "integers"),
        ("contributions", {"position": 64}, 400, "position 64"),
        ("contributions", {"token": "ab"}, 400, "2 tokens"),
    ],
)
def test_invalid_options_are_refused_by_name(
    server: RunningServer, view: str, body: dict[str, Any], status: int, expected: str
) -> None:
    response = server.post(f"/lens/{view}", **{"model": "alone"} | body)
    assert expected in error_message(response, status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"layer": NaN}',
        b'{"layer": Infinity}',
        b'{"layer": 1e400}',
        b'{"text": "\xff"}',
        b'{"layer": %s}' % (b"9" * 5000),
        b'{"text": [%s' % (b"[" * 9000),
        b'{"text": [NaN]}',
        b'{"at": [NaN, 1]}',
    ],
)
def test_invalid_json_is_refused(server: RunningServer, body: bytes) -> None:
    response = server.request("POST", "/lens/attention", body, {"content-type": "application/json"})
    assert response.status == 400
    assert response.json["error"]["message"]


def test_an_error_of_the_lens_comes_with_its_hint(server: RunningServer) -> None:
    error = server.post("/lens/contributions", model="alone", text="a", token="ab").json["error"]
    assert error["hint"] == "one of these tokens"
    assert error["type"] == "invalid_request_error"
    assert "hint" not in server.post("/lens/contributions", model="nobody").json["error"]


# Concurrent requests


class BlockedInspect:
    """Replaces `lens.inspect`. Each call waits until `release` is set or its client disconnects."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.release, self.lock = threading.Event(), threading.Lock()
        self.stops_early = True
        self.started = self.running = self.max_running = self.finished = 0
        patch.setattr(lens, "inspect", self)

    def __call__(self, loaded: Any, view: str, **options: Any) -> Any:
        with self.lock:
            self.started += 1
            self.running += 1
            self.max_running = max(self.max_running, self.running)
        try:
            while not self.release.wait(0.01):
                if self.stops_early:
                    torch.ones(1) + torch.ones(1)
            return lens.FUNCTIONS[view](loaded, **options)  # type: ignore[operator]
        finally:
            with self.lock:
                self.running -= 1
                self.finished += 1


@pytest.fixture
def blocked(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockedInspect]:
    blocked = BlockedInspect(monkeypatch)
    yield blocked
    blocked.release.set()
    wait_until(lambda: not blocked.running)


def send_request(server: RunningServer) -> socket.socket:
    """Request a view and return the client's socket."""
    body = json.dumps({"model": "alone", "text": "abc"}).encode()
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(
        b"POST /lens/next_token HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    return client


def test_two_views_run_at_once_16_are_queued_and_more_are_429(server: RunningServer, blocked: BlockedInspect) -> None:
    with ThreadPoolExecutor(19) as clients:
        requested = [clients.submit(server.post, "/lens/next_token", model="alone", text="abc") for _ in range(18)]
        wait_until(lambda: blocked.started == 2 and server.app.drain.running == 18)
        refused = server.post("/lens/next_token", model="alone", text="abc")
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        # Other routes are answered meanwhile.
        assert server.request("GET", "/health").status == 200
        assert server.request("GET", "/lens").status == 200
        assert server.complete(max_tokens=4).status == 200
        blocked.release.set()
        assert [each.result().status for each in requested] == [200] * 18
    assert (blocked.max_running, blocked.started) == (2, 18)


def test_the_views_of_disconnected_clients_are_not_computed(server: RunningServer, blocked: BlockedInspect) -> None:
    """A queued view is never started, and a running one stops early."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(send_request(server)) for _ in range(18)]
        wait_until(lambda: blocked.started == 2 and server.app.drain.running == 18)
        assert server.post("/lens/next_token", model="alone", text="abc").status == 429
        for client in clients:
            client.close()
    wait_until(lambda: blocked.finished >= 2 and not blocked.running and not server.app.drain.running)
    assert not blocked.release.is_set()
    assert blocked.started <= 4  # one may start before the server notices that its client has disconnected
    blocked.release.set()
    assert server.post("/lens/next_token", model="alone", text="abc").status == 200


def test_a_view_counts_until_it_has_left_the_queue_also_if_its_client_disconnects(
    server: RunningServer, blocked: BlockedInspect, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the queue would grow without bound while the threads are busy."""
    blocked.stops_early = False  # in one long operation of PyTorch
    with contextlib.ExitStack() as stack:
        for _ in range(18):
            stack.enter_context(send_request(server))
        wait_until(lambda: blocked.started == 2 and server.app.drain.running == 18)
    wait_until(lambda: not server.app.drain.running)
    assert server.post("/lens/next_token", model="alone", text="abc").status == 429
    blocked.stops_early = True
    wait_until(lambda: not blocked.running)
    blocked.release.set()
    wait_until(lambda: server.post("/lens/next_token", model="alone", text="abc").status == 200)
    assert blocked.started == 3
    assert not caplog.records
