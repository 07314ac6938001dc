"""The page's server side: the lens and the runs over HTTP, the page's files, and the page that needs no server."""

import base64
import contextlib
import copy
import dataclasses
import functools
import gzip
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import setuptools.build_meta
import torch

from lenses import random_checkpoint, train_on
from octavo import cli, lens, runs, views
from octavo.errors import OctavoError
from octavo.files import write_atomic
from octavo.runs import Run
from octavo.server import _wait_for, lens_api, load_model, static_page
from octavo.server.limits import Limits
from octavo.server.protocol import LensRequest
from octavo.server.runs_api import Log
from octavo.settings import ModelSettings
from serving import SMALL, Running, running, until

TEXT = "the cat sat; <b>كتاب</b> 🦉!"
INDEX = """<!doctype html>
<html lang="en"><head>
<meta charset="utf-8">
<link rel="stylesheet" href="/page/style.css">
<script type="importmap">
{"imports": {"octavo/main": "/page/main.js"}}
</script>
<script type="module" src="/page/main.js"></script>
</head><body></body></html>
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a few files, a secret beside it."""
    folder = tmp_path_factory.mktemp("site") / "page"
    for name, content in (("index.html", INDEX), ("style.css", "body { color: red }"), ("main.js", "export {};"),
                          ("i18n/en/a.json", '{"a": "A"}'), ("i18n/ar/a.json", '{"a": "ا"}'),
                          ("i18n/ar/b.json", '{"b": "ب"}'), (".hidden.js", "no"), ("vendor/LICENSE", "MIT"),
                          ("../secret.js", "no")):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Twenty steps, of which four were kept."""
    text = "the cat sat on the mat, and the rat sat on the hat. <b>كتاب</b> 🦉!\n" * 20
    return train_on(text, tmp_path_factory.mktemp("trained") / "text", tokenizer="bpe:300", n_layer=3, n_embd=48,
                      n_head=3, block_size=32, batch_size=8, max_steps=20, warmup_steps=4, eval_every=10, log_every=1,
                      keep_checkpoints=4)  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that belongs to no run."""
    return random_checkpoint(tmp_path_factory.mktemp("alone") / "alone", "byte", block_size=64).folder


@pytest.fixture(scope="module")
def environment(built: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(built.parent))
        yield


@pytest.fixture(scope="module")
def server(trained: Run, alone: Path, root: Path, environment: None) -> Iterator[Running]:
    cpu = torch.device("cpu")
    models = {
        name: load_model(name, folder, cpu, SMALL) for name, folder in (("run", trained.folder), ("alone", alone))
    }
    with running(models, runs={"run": trained}, page_root=root) as it:
        yield it


def look_at(server: Running, view: str, model: str = "alone", **options: Any) -> Any:
    answer = server.post(f"/lens/{view}", model=model, **options)
    assert answer.status == 200, answer.body
    return answer.json


def message(server: Running, status: int, path: str, **body: Any) -> str:
    """What a request is refused with."""
    answer = server.post(path, **body)
    assert answer.status == status, answer.body
    return str(answer.json["error"]["message"])


# The lens

ASKED: dict[str, dict[str, Any]] = {
    "shapes": {"text": TEXT, "layer": 1, "head": 2}, "tokens": {"text": TEXT},
    "position": {"word": "cat", "at": [0, 5]}, "neighbors": {"word": "a", "top": 5, "against": "b"},
    "projection": {"words": ["a", "e"]},
    "attention": {"text": TEXT, "layer": -1, "head": 1}, "next_token": {"text": TEXT},
    "logit_lens": {"text": TEXT, "top": 3, "positions": [0, -1]},
    "contributions": {"text": TEXT, "position": 4, "token": "a"},
    "surprisal": {"text": TEXT}, "ablation": {"text": TEXT, "layer": 0},
}  # fmt: skip


def test_the_views_are_the_lenss() -> None:
    assert set(lens_api.VIEWS) == lens.VIEWS.keys() - {"verify", "losses"}
    options = {option for view in lens_api.VIEWS for option in views.VIEWS[view].options}
    assert LensRequest.model_fields.keys() == options | {"model", "step"}
    assert ASKED.keys() == set(lens_api.VIEWS)


@pytest.mark.parametrize("view", ASKED)
@pytest.mark.parametrize("model", ["run", "alone"])
def test_a_view_over_http_is_the_view(
    server: Running, trained: Run, monkeypatch: pytest.MonkeyPatch, model: str, view: str
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(trained.folder.parent / "cache"))  # where the run's text lies prepared
    seen = look_at(server, view, model, **ASKED[view])
    plain = json.loads(json.dumps(lens.inspect(server.models[model].loaded, view, **ASKED[view]).plain()))
    if view == "attention":
        assert [len(row) for row in seen["weights"]] == list(range(1, len(seen["tokens"]) + 1))
        whole = [row + [0] * (len(seen["tokens"]) - len(row)) for row in seen.pop("weights")]
        np.testing.assert_allclose(whole, plain.pop("weights"), atol=1.5e-6)
    assert seen == plain


def test_without_a_text_the_models_own_is_looked_at_and_ids_are_a_text_too(server: Running) -> None:
    seen = look_at(server, "tokens")
    assert seen["generated"]
    assert look_at(server, "tokens", text=None, unknown=None) == seen
    ids = [token["id"] for token in seen["tokens"]]
    assert look_at(server, "tokens", text=ids)["text"] == seen["text"]


def test_attention_of_512_tokens_is_small_and_its_rows_sum_to_one(
    tmp_path: Path, root: Path, environment: None
) -> None:
    """Of an untrained model, whose shares are all alike: the most digits that there can be."""
    folder = random_checkpoint(
        tmp_path / "long", "byte", std=0.02, block_size=512, n_layer=1, n_head=2, n_embd=32
    ).folder
    served = load_model("long", folder, torch.device("cpu"), SMALL)
    with running({"long": served}, page_root=root) as it:
        text = ("To be, or not to be: that is the question. " * 12)[:512]
        for wanted, headers in (
            ("identity", {"accept-encoding": "gzip;q=0"}),
            ("gzip", {"accept-encoding": "br, gzip"}),
        ):
            answer = it.ask("POST", "/lens/attention", {"text": text, "head": 1}, headers)
            assert answer.headers.get("content-encoding", "identity") == wanted
            assert len(answer.body) < (1_000_000 if wanted == "identity" else 500_000)
            body = gzip.decompress(answer.body) if wanted == "gzip" else answer.body
        weights = json.loads(body)["weights"]
        assert [len(row) for row in weights] == list(range(1, 513))
        assert max(abs(sum(row) - 1) for row in weights) < 1e-9
        exact = lens.attention(served.loaded, text, head=1).weights
        assert max(np.abs(np.array(row) - exact[t, : t + 1]).max() for t, row in enumerate(weights)) < 1.1e-5


@pytest.mark.parametrize("row", [[0.1] * 10, [1 / 3] * 3, [1.0, 0.0], [1e-9, 1 - 1e-9], [0.9999995, 0.0000005]])
def test_a_row_that_was_rounded_sums_to_one(row: list[float]) -> None:
    weights = np.zeros((len(row), len(row)), np.float32)
    weights[:, 0], weights[-1] = 1, row
    assert sum(json.loads(lens_api.triangle(weights))[-1]) == pytest.approx(1, abs=1e-12)


def test_a_broken_model_is_told_and_no_nan_is_sent(tmp_path: Path, root: Path, environment: None) -> None:
    loaded = random_checkpoint(tmp_path / "broken", "byte")
    served = load_model("broken", loaded.folder, torch.device("cpu"), SMALL)
    with torch.no_grad():
        served.loaded.model.transformer.wpe.weight.fill_(torch.nan)
    with running({"broken": served}, page_root=root) as it:
        for view in ("attention", "shapes", "position", "next_token", "logit_lens"):
            assert "finite" in message(
                it, 400, f"/lens/{view}", **{"text": "a"} if view != "position" else {"at": [0, 1]}
            )


def test_long_lists_become_json_in_pieces() -> None:
    value = {"a": list(range(5000)), "b": [[1.5] * 3000, []], "c": [], "d": [{"x": "ü"}] * 1001, "e": None}
    assert {name: json.loads("".join(lens_api._pieces(each))) for name, each in value.items()} == value


def test_all_models_tell_their_shape_and_steps(server: Running, trained: Run) -> None:
    told = server.ask("GET", "/lens").json
    assert told["views"] == list(lens_api.VIEWS)
    run, alone = told["models"]
    steps = list(trained.steps)
    assert (run["id"], run["run"], run["steps"], run["tokenizer"]) == ("run", True, steps, "bpe")
    assert run["step"] == runs.step_of(trained.best)  # type: ignore[union-attr]
    model = server.models["run"].loaded.model
    assert run["model"]["parameters"] == sum(each.numel() for each in model.parameters())
    assert run["model"]["n_embd"] == model.settings.n_embd
    assert (alone["id"], alone["run"], alone["steps"], alone["step"]) == ("alone", False, [], None)


def test_a_model_tells_how_its_tables_began(trained: Run) -> None:
    loaded = runs.load(trained.folder)
    for weights, embeddings, expected in (("lookback", "uniform", "waves"), ("noise", "uniform", "uniform"),
                                          ("noise", "normal", "normal")):  # fmt: skip
        settings = dataclasses.replace(loaded.settings, weight_init=weights, embedding_init=embeddings)  # type: ignore[call-arg]
        told = lens_api.described("run", dataclasses.replace(loaded, settings=settings))
        assert (told.wte_start, told.wpe_start) == (embeddings, expected)
    bare = ModelSettings(vocab_size=loaded.settings.vocab_size)  # of a model that Octavo didn't train
    elsewhere = lens_api.described("other", dataclasses.replace(loaded, settings=bare))
    assert (elsewhere.wte_start, elsewhere.wpe_start) == (None, None)


def test_every_step_of_a_run_can_be_looked_at(server: Running, trained: Run) -> None:
    seen = []
    for step, path in [*trained.steps.items(), *list(trained.steps.items())[:1]]:
        seen.append(look_at(server, "next_token", "run", text="the cat", step=step))
        assert seen[-1]["logits"] == lens.next_token(runs.load(path), "the cat").plain()["logits"]
    assert seen[0] == seen[-1] != seen[1]
    without_step = look_at(server, "next_token", "run", text="the cat")
    assert look_at(server, "next_token", "run", text="the cat", step=None) == without_step


def test_of_the_checkpoints_two_are_kept_and_of_large_models_one(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, steps = server.models["run"], lens_api.Steps()
    first, second, third = [step for step in served.steps if step != served.step][:3]
    loaded = steps.at(served, first)
    steps.at(served, second)
    assert steps.at(served, first) is loaded
    steps.at(served, third)
    assert [path.name for path, _ in steps._kept] == [f"step-{first:06d}", f"step-{third:06d}"]
    monkeypatch.setattr(lens_api, "_LARGE", 1000)
    steps.at(served, second)
    assert len(steps._kept) == 1
    assert steps.at(served, served.step).model is served.loaded.model
    os.utime(served.steps[second] / "manifest.json", ns=(0, 0))  # as if written anew
    steps.at(served, second)
    assert len(steps._kept) == 1


def test_a_model_that_writes_elsewhere_is_looked_at_on_the_cpu(server: Running) -> None:
    served = server.models["run"]
    elsewhere = dataclasses.replace(served.loaded, model=copy.deepcopy(served.loaded.model).to("meta"))
    found = lens_api.Steps().at(dataclasses.replace(served, loaded=elsewhere), None)
    assert torch.equal(found.model.lm_head.weight, served.loaded.model.lm_head.weight)


def test_a_server_reads_no_text_that_is_not_prepared(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's text might be standard input, or on the network."""
    from octavo.data import prepare

    asked: list[str] = []
    monkeypatch.setattr(prepare, "open_source", lambda settings, *rest: asked.append(settings.source))
    assert "data" in server.models["run"].loaded.info
    seen = look_at(server, "neighbors", "run", word="a", against="b")
    assert (asked, seen["control"][:4]) == ([], "none")


@pytest.mark.parametrize(("view", "body", "status", "says"), [
    ("nothing", {}, 400, "view"), ("losses", {}, 400, "view"), ("verify", {}, 400, "view"),
    ("projection", {"text": "a"}, 400, "projection takes no text"),
    ("attention", {"word": "a"}, 400, "attention takes no word"),
    ("attention", {"layr": 1}, 400, "'layer'"), ("attention", {"frob": 1}, 400, "no field 'frob'"),
    ("attention", {"model": "nobody"}, 404, "no model 'nobody'"), ("attention", {"model": ""}, 400, "several models"),
    ("attention", {"step": 999, "model": "run"}, 404, "no checkpoint of step 999"),
    ("attention", {"step": 1, "model": "alone"}, 404, "no checkpoint of step 1"),
    ("attention", {"step": -1}, 400, "step"), ("attention", {"step": True}, 400, "step"),
    ("attention", {"layer": 99}, 400, "layer 99"), ("attention", {"layer": 10**40}, 400, "layer"),
    ("attention", {"layer": "1"}, 400, "layer"), ("attention", {"layer": 1.5}, 400, "layer"),
    ("attention", {"layer": True}, 400, "layer"), ("attention", {"head": [1]}, 400, "head"),
    ("attention", {"text": ""}, 400, "no text"), ("attention", {"text": 5}, 400, "token ids"),
    ("attention", {"text": [True]}, 400, "token ids"), ("attention", {"text": [1.5]}, 400, "token ids"),
    ("attention", {"text": []}, 400, "no text"), ("attention", {"text": [10**30]}, 400, "no token"),
    ("attention", {"text": [-1]}, 400, "no token"), ("attention", {"text": {"a": 1}}, 400, "token ids"),
    ("attention", {"text": [1] * 65}, 400, "block_size is 64"), ("tokens", {"text": "a" * 200_001}, 400, "200,000"),
    ("attention", {"text": "a\ud800"}, 400, "unknown characters"), ("attention", {"unknown": "guess"}, 400, "unknown"),
    ("position", {"word": "a" * 101}, 400, "100"), ("position", {"word": ""}, 400, "empty word"),
    ("position", {"at": [1]}, 400, "2 whole numbers"), ("position", {"at": [1, "2"]}, 400, "2 whole numbers"),
    ("position", {"at": [0, 64]}, 400, "position 64"), ("projection", {"words": ["a"] * 21}, 400, "20"),
    ("projection", {"words": ["a" * 101]}, 400, "100 characters"), ("projection", {"words": [1.5]}, 400, "words"),
    ("neighbors", {"top": 101}, 400, "top"), ("neighbors", {"top": 0}, 400, "top"),
    ("logit_lens", {"top": 51}, 400, "top=51"), ("logit_lens", {"positions": [0] * 4097}, 400, "4,096"),
    ("logit_lens", {"positions": 3}, 400, "whole numbers"),
    ("contributions", {"position": 64}, 400, "position 64"), ("contributions", {"token": "ab"}, 400, "2 tokens"),
])  # fmt: skip
def test_what_cannot_be_looked_at_is_told(
    server: Running, view: str, body: dict[str, Any], status: int, says: str
) -> None:
    told = message(server, status, f"/lens/{view}", **{"model": "alone"} | body)
    assert says in told


@pytest.mark.parametrize("body", [
    b"", b"[]", b"null", b"{", b'{"layer": NaN}', b'{"layer": Infinity}', b'{"layer": 1e400}', b'{"text": "\xff"}',
    b'{"layer": %s}' % (b"9" * 5000), b'{"text": [%s' % (b"[" * 9000), b'{"text": [NaN]}', b'{"at": [NaN, 1]}',
])  # fmt: skip
def test_what_is_no_json_is_refused(server: Running, body: bytes) -> None:
    answer = server.ask("POST", "/lens/attention", body, {"content-type": "application/json"})
    assert answer.status == 400
    assert answer.json["error"]["message"]


def test_what_the_lens_refuses_comes_with_its_hint(server: Running) -> None:
    error = server.post("/lens/contributions", model="alone", text="a", token="ab").json["error"]
    assert error["hint"] == "one of them"
    assert error["type"] == "invalid_request_error"
    assert "hint" not in server.post("/lens/contributions", model="nobody").json["error"]


# Several views at once


class Slow:
    """`lens.inspect`, that waits until it is let go, or its client left."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.go, self.lock = threading.Event(), threading.Lock()
        self.begun = self.under_way = self.most = self.ended = 0
        patch.setattr(lens, "inspect", self)

    def __call__(self, loaded: Any, view: str, **options: Any) -> Any:
        with self.lock:
            self.begun += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            while not self.go.wait(0.01):
                torch.ones(1) + torch.ones(1)
            return lens.VIEWS[view](loaded, **options)  # type: ignore[operator]
        finally:
            with self.lock:
                self.under_way -= 1
                self.ended += 1


@pytest.fixture
def slow(server: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    made = Slow(monkeypatch)
    yield made
    made.go.set()
    until(lambda: not made.under_way)


def left(server: Running) -> socket.socket:
    """A client that has asked for a view, and is about to leave."""
    body = json.dumps({"model": "alone", "text": "abc"}).encode()
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(b"POST /lens/next_token HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                   b"content-length: %d\r\n\r\n%s" % (len(body), body))  # fmt: skip
    return client


def test_two_views_are_made_at_once_sixteen_wait_and_others_are_refused(server: Running, slow: Slow) -> None:
    with ThreadPoolExecutor(19) as clients:
        asked = [clients.submit(server.post, "/lens/next_token", model="alone", text="abc") for _ in range(18)]
        until(lambda: slow.begun == 2 and server.guard.running == 18)
        refused = server.post("/lens/next_token", model="alone", text="abc")
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        # Meanwhile whoever asks for something else is answered.
        assert server.ask("GET", "/health").status == 200
        assert server.ask("GET", "/lens").status == 200
        assert server.complete(max_tokens=4).status == 200
        slow.go.set()
        assert [each.result().status for each in asked] == [200] * 18
    assert (slow.most, slow.begun) == (2, 18)


def test_whoever_leaves_frees_the_place(server: Running, slow: Slow) -> None:
    """What waits is never begun, and what is under way ends although it was not finished."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(left(server)) for _ in range(18)]
        until(lambda: slow.begun == 2 and server.guard.running == 18)
        assert server.post("/lens/next_token", model="alone", text="abc").status == 429
        for client in clients:
            client.close()
    until(lambda: slow.ended >= 2 and not slow.under_way and not server.guard.running)
    assert not slow.go.is_set()
    assert slow.begun <= 4  # one may have begun between its neighbour's end and its own client's leaving
    slow.go.set()
    assert server.post("/lens/next_token", model="alone", text="abc").status == 200


# The page


def test_the_page_is_served_with_a_policy_of_its_own(server: Running, root: Path) -> None:
    answer = server.ask("GET", "/")
    assert answer.body == (root / "index.html").read_bytes()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    between = re.search("<script type=.importmap.>(.*?)</script>", INDEX, re.DOTALL)[1]  # type: ignore[index]
    hashed = base64.b64encode(hashlib.sha256(between.encode()).digest()).decode()
    assert answer.headers["content-security-policy"].split("; ") == [
        "default-src 'none'", f"script-src 'self' 'sha256-{hashed}'", "style-src 'self'", "img-src 'self' data: blob:",
        "connect-src 'self'", "font-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    ]  # fmt: skip
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["referrer-policy"] == "no-referrer"
    again = server.ask("GET", "/", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(("name", "kind"), [
    ("main.js", "text/javascript; charset=utf-8"), ("style.css", "text/css; charset=utf-8"),
    ("i18n/ar/b.json", "application/json"), ("index.html", "text/html; charset=utf-8"),
])  # fmt: skip
def test_the_pages_files_have_their_types(server: Running, root: Path, name: str, kind: str) -> None:
    answer = server.ask("GET", f"/page/{name}")
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, (root / name).read_bytes(), kind)
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", [
    "/page/../secret.js", "/page/%2e%2e/secret.js", "/page/..%2fsecret.js", "/page/%2e%2e%2fsecret.js",
    "/page/nothing.js", "/page/i18n/../main.js", "/page//main.js", "/page/./main.js", "/page/.hidden.js",
    "/page/vendor/LICENSE", "/page/",
    "/page/i18n", "/page/main.js%00", "/page/main.js/", "/page/MAIN.JS", "/page/%2fetc%2fpasswd", "/page//etc/passwd",
    "/page/..%5csecret.js", "/page/%252e%252e/secret.js", "/page/../../app.py", "/page", "/index.html", "/secret.js",
    "//page/main.js", "/page%2fmain.js%3f",
])  # fmt: skip
def test_nothing_else_is_served(server: Running, path: str) -> None:
    answer = server.ask("GET", path)
    assert answer.status == 404
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "there is no" in answer.json["error"]["message"] or "has no" in answer.json["error"]["message"]


def test_the_api_has_the_strictest_policy(server: Running) -> None:
    for answer in (server.ask("GET", "/lens"), server.ask("GET", "/runs"),
                   server.post("/lens/next_token", model="alone", text="a"),
                   server.ask("GET", "/health"), server.ask("POST", "/")):  # fmt: skip
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["cache-control"] == "no-store"


def test_the_page_is_open_and_all_that_is_the_models_needs_the_key(alone: Path, root: Path, environment: None) -> None:
    served = load_model("alone", alone, torch.device("cpu"), SMALL)
    with running({"alone": served}, page_root=root, keys=["the-key"]) as it:
        for path in ("/", "/page/main.js", "/favicon.ico", "/page/nothing"):
            assert it.ask("GET", path).status in (200, 204, 404)
        for path in ("/lens", "/runs", "/runs/alone/metrics", "/page", "//", "/page%2fx", "/v1/models"):
            if path != "/page%2fx":  # which is /page/x, once decoded
                assert it.ask("GET", path).status == 401
        assert it.post("/lens/next_token", text="a").status == 401
        it.headers["authorization"] = "Bearer the-key"
        assert it.post("/lens/next_token", text="a").status == 200
        assert it.ask("GET", "/runs").json == {"runs": []}
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
            assert it.ask("GET", "/", headers=headers).status in (400, 403)


def test_the_page_that_is_shipped_is_whole() -> None:
    """Every file that the index names is there, all are small as they are sent, and none is loaded from elsewhere."""
    files = static_page.files_of(static_page.ROOT)
    index = files["index.html"].read_text(encoding="utf-8")
    modules = [path for name, path in files.items() if re.fullmatch(r"(?!vendor/).*\.js", name)]
    code = "".join(path.read_text(encoding="utf-8") for path in modules)
    named = set(re.findall(r'"/page/([^"]+)"', index + code))
    assert named <= files.keys()
    assert len(re.findall("(?:src|href)=", index)) == len(re.findall('(?:src|href)="(?:/page/|data:)', index))
    assert len(static_page._SCRIPT.findall(index.encode())) == 1
    assert not re.search(r"\son\w+=|\sstyle=", index)
    sent = {name: len(lens_api.packed(path.read_bytes(), "gzip")[0]) for name, path in files.items()}
    assert sum(sent.values()) < 300_000
    languages = {name.split("/")[1] for name in files if name.startswith("i18n/")}
    assert len(languages) == 5
    for language in languages:  # whom only one of them concerns
        assert sum(size for name, size in sent.items() if not re.match(f"i18n/(?!{language}/)", name)) < 150_000


def test_the_wheel_carries_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = Path(__file__).parents[1]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(top / name, tmp_path)
    for name in ("__init__.py", "page"):
        source, target = top / "src/octavo" / name, tmp_path / "src/octavo" / name
        shutil.copytree(source, target) if source.is_dir() else target.parent.mkdir(parents=True) or shutil.copy(
            source, target
        )
    monkeypatch.chdir(tmp_path)
    wheel = setuptools.build_meta.build_wheel(str(tmp_path))
    shutil.unpack_archive(wheel, "out", "zip")
    shipped = {path.relative_to(static_page.ROOT) for path in static_page.ROOT.rglob("*") if path.is_file()}
    assert shipped == {p.relative_to("out/octavo/page") for p in Path("out/octavo/page").rglob("*") if p.is_file()}


# Runs


def test_the_runs_that_were_named_are_told_and_no_others(server: Running, trained: Run) -> None:
    [told] = server.ask("GET", "/runs").json["runs"]
    settings = trained.settings
    assert {name: getattr(settings, name) for name in told["settings"]} == told["settings"]
    assert {"max_steps", "n_layer", "learning_rate", "batch_size", "tokenizer", "source", "preset"} <= told[
        "settings"
    ].keys()
    assert (told["name"], told["last_step"], told["running"]) == ("run", 20, False)
    assert told["tokens_per_step"] == settings.batch_size * settings.block_size
    assert told["parameters"] == server.ask("GET", "/lens").json["models"][0]["model"]["parameters"]
    for name in ("alone", "..", "nothing", "%2e%2e", "run%2f..%2frun"):
        assert server.ask("GET", f"/runs/{name}/metrics").status == 404
    assert server.ask("GET", "/runs/run/settings").status == 400


def test_a_runs_lines_come_from_the_one_that_is_asked_for(server: Running, trained: Run) -> None:
    lines = trained.lines("metrics")
    assert len(lines) == 20
    for after in (0, 7, 20):
        told = server.ask("GET", f"/runs/run/metrics?after={after}").json
        assert told == {"lines": lines[after:], "next": 20, "restarted": False}
    assert server.ask("GET", "/runs/run/metrics").json["lines"] == lines
    assert server.ask("GET", "/runs/run/metrics?after=21").json == {"lines": lines, "next": 20, "restarted": True}
    assert server.ask("GET", "/runs/run/samples").json == {"lines": [], "next": 0, "restarted": False}
    for after in ("-1", "a", "1.5", "", "1e3", "99999999999999999999"):
        assert server.ask("GET", f"/runs/run/metrics?after={after}").status == 400


def test_a_run_that_trains_is_seen_to_train(trained: Run, tmp_path: Path, root: Path, environment: None) -> None:
    """Line by line, while its model is still to come; then the model too."""
    run = Run.create(trained.settings, "new", tmp_path / "<script>")
    begun, models, name = {run.folder.name: run}, {}, "%3Cscript%3E"
    ended = threading.Event()

    def take(name: str) -> None:
        models[name] = load_model(name, run.folder, torch.device("cpu"), SMALL)

    with running(models, begun=begun, runs=dict(begun), page_root=root) as it, run.lock():
        [told] = it.ask("GET", "/runs").json["runs"]
        assert (told["name"], told["last_step"], told["running"]) == ("<script>", 0, True)
        assert it.ask("GET", "/lens").json["models"] == []
        assert it.ask("GET", f"/runs/{name}/metrics").json == {"lines": [], "next": 0, "restarted": False}
        assert "no checkpoint yet" in message(it, 503, "/lens/next_token", text="a")
        assert "no checkpoint yet" in message(it, 503, "/v1/completions", model="<script>")
        run.log("metrics", {"step": 1, "loss": 4.5})
        assert it.ask("GET", f"/runs/{name}/metrics").json["lines"] == [{"step": 1, "loss": 4.5}]
        run.log("samples", {"step": 1, "text": "</script><b>\u2028"})
        assert it.ask("GET", f"/runs/{name}/samples").json["lines"][0]["text"] == "</script><b>\u2028"
        waiting = threading.Thread(target=_wait_for, args=(begun, take, ended))
        waiting.start()
        loaded = runs.load(trained.folder)
        run.save(1, loaded.model, loaded.tokenizer, trained.settings, {"step": 1})
        files = (run.folder / "checkpoints" / "step-000001").rename(run.folder / "checkpoints" / "step-000002")
        (run.folder / "last").write_text(files.name, encoding="utf-8")
        waiting.join(30)
        assert it.ask("GET", "/lens").json["models"][0]["step"] == 2
        assert it.post("/lens/next_token", text="a").status == 200
        assert it.complete("a").status == 200
        assert 'octavo_slots{model="<script>"}' in it.ask("GET", "/metrics").body.decode()
    assert not run.is_locked


def test_lines_that_are_half_written_or_none_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(path)
    assert log.after(0) == ([], 0, False)
    assert log.after(5) == ([], 0, True)
    path.write_bytes(b'{"step": 1}\n{"step": 2, "gr')
    assert log.after(0) == ([{"step": 1}], 1, False)
    with open(path, "ab") as file:
        file.write(
            b'ad": NaN, "x": [1e999, -Infinity]}\nnothing\n[1]\n{"a": "\xff"}\n' + b"[" * 99999 + b'\n\n{"step": 3}\n'
        )
    assert log.after(1) == ([{"step": 2, "grad": None, "x": [None, None]}, {"step": 3}], 8, False)
    assert log.last_step == 3
    with open(path, "ab") as file:
        file.write(b'{"step": "<b>"}\n')
    assert log.last_step == 0


def test_a_run_that_went_back_is_told_from_the_beginning(tmp_path: Path, trained: Run) -> None:
    run = Run.create(trained.settings, "back", tmp_path / "back")
    for step in range(10):
        run.log("metrics", {"step": step})
    log = Log(run.folder / "metrics.jsonl")
    assert log.after(0)[1:] == (10, False)
    run.rewind(4)
    assert log.after(10) == ([{"step": step} for step in range(5)], 5, True)
    run.log("metrics", {"step": 5, "again": True})
    assert log.after(5) == ([{"step": 5, "again": True}], 6, False)
    (run.folder / "metrics.jsonl").unlink()
    assert log.after(6) == ([], 0, True)


def test_many_lines_come_five_thousand_at_a_time_and_huge_ones_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(12_001)), encoding="utf-8")
    log = Log(path)
    got, at = [], 0
    for count in (5000, 5000, 2001, 0):
        lines, at, restarted = log.after(at)
        assert (len(lines), restarted) == (count, False)
        got += lines
    assert [line["step"] for line in got] == list(range(12_001))
    write_atomic(path, '{"a": 1}\n{"b": "' + "x" * Limits.lines_bytes + '"}\n{"c": 3}\n')
    assert log.after(0) == ([{"a": 1}], 1, False)
    assert log.after(1) == ([], 2, False)
    assert log.after(2) == ([{"c": 3}], 3, False)


# Ids of what is written


@pytest.mark.parametrize("prompt", ["the cat", [5, 6, 7], ""])
@pytest.mark.parametrize("how", [{}, {"echo": True, "logprobs": 2}, {"stop": ["e"]}, {"n": 3}])
def test_token_ids_are_those_of_the_text_and_of_the_prompt(server: Running, prompt: Any, how: dict[str, Any]) -> None:
    asked = {
        "model": "alone",
        "prompt": prompt,
        "max_tokens": 24,
        "seed": 4,
        "temperature": 2,
        "return_token_ids": True,
    }
    choices = server.complete(**asked | how).json["choices"]
    assert all(
        "token_ids" not in each for each in server.complete(**asked | how | {"return_token_ids": False}).json["choices"]
    )
    tokenizer = server.models["alone"].loaded.tokenizer
    ids = prompt if isinstance(prompt, list) else [int(id) for id in tokenizer.encode(prompt or "\n")]
    events = server.complete(**asked | how, stream=True).events[:-1]
    for at, choice in enumerate(choices):
        assert choice["prompt_token_ids"] == ids
        text = choice["text"].removeprefix(tokenizer.decode(ids) if how.get("echo") and prompt else "")
        decoder = tokenizer.decoder(errors="ignore")
        written = "".join(decoder.push(id) for id in choice["token_ids"])
        assert written.startswith(text)
        assert "stop" in how or written == text
        chunks = [event["choices"][0] for event in events if event["choices"][0]["index"] == at]
        assert [id for chunk in chunks for id in chunk["token_ids"]] == choice["token_ids"]
        assert chunks[0]["prompt_token_ids"] == ids
        assert all(chunk["prompt_token_ids"] is None for chunk in chunks[1:])
        # To go on from ids is to go on: the same text, whether written at once or in two parts.
    if not how:
        half = choices[0]["token_ids"][:10]
        rest = server.complete(**asked | {"prompt": ids + half, "temperature": 0, "max_tokens": 5}).json["choices"][0]
        assert rest["prompt_token_ids"] == ids + half


# The page that needs no server


def carried(html: str) -> Any:
    """The data of a static page."""
    found = re.findall(r'<script type="application/json" id="octavo-static">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    assert "<" not in found[0]
    return json.loads(found[0])


@pytest.mark.parametrize("shipped", [False, True])
def test_the_static_page_asks_nobody_for_anything(alone: Path, root: Path, shipped: bool) -> None:
    text = "</script><script>alert(1)</script><!-- <img src=https://evil.example onerror=alert(2)>"
    html = static_page.static(runs.load(alone), text, root=static_page.ROOT if shipped else root)
    assert carried(html)["text"] == text
    page_alone = re.sub(r"<script type=.application/json.*?</script>", "", html, flags=re.DOTALL)
    assert "/page/" not in re.sub(r"base64,[\w+/=]*", "", page_alone)
    loaded = re.findall(r'(?:src|href)="([^"]*)"|"[\w/]+": "([^"]*)"', page_alone)
    assert loaded
    assert all((one or other).startswith("data:") for one, other in loaded)
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()
              for each in re.findall(r"<script type=.importmap.>(.*?)</script>", html, re.DOTALL)]  # fmt: skip
    assert policy.startswith(f"default-src 'none'; script-src data: 'sha256-{hashes[0]}'; ")
    assert "connect-src" not in policy  # so default-src holds
    modules = re.search(r'"octavo/main": "data:text/javascript;charset=utf-8;base64,([^"]*)"', html)
    assert modules
    assert base64.b64decode(modules[1]) == ((static_page.ROOT if shipped else root) / "main.js").read_bytes()


def test_the_static_page_has_what_the_server_would_answer(server: Running, root: Path) -> None:
    loaded = server.models["alone"].loaded
    data = carried(static_page.static(loaded, TEXT, layer=1, head=2, root=root))
    assert data["text"] == TEXT
    assert data["i18n"] == {"en": {"a": "A"}, "ar": {"a": "ا", "b": "ب"}}
    [model] = data["models"]["models"]
    assert model == server.ask("GET", "/lens").json["models"][1]
    pairs = [(i, h) for i in range(3) for h in range(3)]
    for view in ("shapes", "attention"):
        told = [each["options"] for each in data["answers"] if each["view"] == view]
        assert sorted((each["layer"], each["head"]) for each in told) == pairs
        assert told[0] == {"layer": 1, "head": 2}  # what was asked for comes first
    assert set(data["models"]["views"]) == {"tokens", "shapes", "attention", "next_token", "position"}
    for each in data["answers"]:
        text = {} if each["view"] == "position" else {"text": TEXT}
        assert each["answer"] == look_at(server, each["view"], **each["options"], **text)


def test_of_a_long_text_the_static_page_has_one_layer(tmp_path: Path, root: Path) -> None:
    loaded = random_checkpoint(tmp_path / "long", "byte", block_size=100)
    data = carried(static_page.static(loaded, "a long text " * 9, layer=-1, root=root))
    told = {
        (each["options"]["layer"], each["options"]["head"]) for each in data["answers"] if each["view"] == "attention"
    }
    assert told == {(2, 0), (2, 1), (2, 2)}
    assert {each["answer"].get("left_out") for each in data["answers"] if each["view"] == "attention"} == {8}


def test_positions_of_the_static_page_are_of_a_word_that_the_model_knows(tmp_path: Path, root: Path) -> None:
    for kind, text, block_size, word, at in (
        ("char", "كتاب الكتاب", 16, "كتاب", [1, 10]),
        ("byte", "abc", 4, "cat", [0, 1]),
        ("byte", "abc", 2, "a", [0, 1]),
    ):
        loaded = random_checkpoint(tmp_path / f"{kind}{block_size}", kind, text=text, block_size=block_size)
        data = carried(static_page.static(loaded, text, root=root))
        [told] = [each["options"] for each in data["answers"] if each["view"] == "position"]
        assert told == {"word": word, "at": at}


def test_the_command_writes_the_static_page(
    trained: Run, alone: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:  # fmt: skip
    monkeypatch.setattr(static_page, "static", functools.partial(static_page.static, root=root))
    path = tmp_path / "out" / "walk.html"
    assert cli.main(["inspect", str(trained.folder), "--html", str(path), "--text", "the cat", "--layer", "1"]) == 0
    data = carried(path.read_text(encoding="utf-8"))
    assert data["models"]["models"][0]["id"] == trained.folder.name
    assert data["text"] == "the cat"
    assert capsys.readouterr().out == ""
    assert cli.main(["inspect", str(alone), "tokens", "--html", str(path), "--text", "the cat"]) == 0
    assert "7 tokens" in capsys.readouterr().out
    for words in (["--preset", "gpt2-512", "shapes"], [str(alone), "--word", "cat"], [str(tmp_path / "nothing")]):
        assert cli.main(["inspect", *words, "--html", str(path)]) == 2
        assert "try:" in capsys.readouterr().err
    assert cli.main(["inspect", str(alone), "--html", str(tmp_path)]) == 2
    with pytest.raises(OctavoError, match="no page"):
        static_page.static(runs.load(alone), root=tmp_path / "empty")
