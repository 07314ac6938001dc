"""The routes for models, tokenizers and metrics."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import octavo
from octavo.server import app
from serving import BLOCK, RunningServer, openai_error, serve_each_tokenizer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, native_cache: None) -> Iterator[RunningServer]:
    """A model of each tokenizer."""
    with serve_each_tokenizer(tmp_path_factory.mktemp("models")) as running:
        yield running


def test_models_are_listed(server: RunningServer) -> None:
    listed = server.request("GET", "/v1/models").json
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == ["char", "byte", "bpe"]
    for each in listed["data"]:
        assert server.request("GET", f"/v1/models/{each['id']}").json == each
        assert each["object"] == "model"
        assert each["max_model_len"] == BLOCK
    openai_error(server.request("GET", "/v1/models/gpt-4"), 404, "model", "model_not_found")


@pytest.mark.parametrize("name", ["char", "byte", "bpe"])
def test_tokenize_and_detokenize_round_trip(server: RunningServer, name: str) -> None:
    tokenizer = server.tokenizer(name)
    text = "café on the €5 mat\n"
    tokenized = server.post("/tokenize", model=name, prompt=text, add_special_tokens=False, return_token_strs=True).json
    assert tokenized["tokens"] == tokenizer.encode(text).tolist()
    assert (tokenized["count"], tokenized["max_model_len"]) == (len(tokenized["tokens"]), BLOCK)
    assert len(tokenized["token_strs"]) == tokenized["count"]
    assert server.post("/detokenize", model=name, tokens=tokenized["tokens"]).json == {"prompt": text}
    assert server.post("/tokenize", model=name, prompt="").json["tokens"] == []
    assert server.post("/detokenize", model=name, tokens=[]).json == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "slow_function", "body"),
    [
        ("/tokenize", "token_string", {"prompt": "the", "return_token_strs": True}),
        ("/detokenize", "resolve_text", {"tokens": [1, 2]}),
    ],
)
def test_the_tokens_of_a_large_text_do_not_block_other_requests(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, path: str, slow_function: str, body: dict[str, Any]
) -> None:
    started, released, function = threading.Event(), threading.Event(), getattr(app, slow_function)

    def wait_and_call(*arguments: Any) -> Any:
        started.set()
        assert released.wait(20)
        return function(*arguments)

    monkeypatch.setattr(app, slow_function, wait_and_call)
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(server.post, path, model="byte", **body)
        assert started.wait(20)
        assert server.request("GET", "/health").status == 200
        released.set()
        assert response.result().status == 200


def test_end_of_text_alone_is_tokenized_as_the_special_token(server: RunningServer) -> None:
    tokenizer = server.tokenizer("bpe")
    info = server.request("GET", "/tokenizer_info?model=bpe").json
    assert info["eos_token"] == info["bos_token"] == "<|endoftext|>"
    assert server.post("/tokenize", model="bpe", prompt=info["eos_token"]).json["tokens"] == [tokenizer.end_of_text]
    tokens = server.post("/tokenize", model="bpe", prompt="a<|endoftext|>").json["tokens"]
    assert tokenizer.end_of_text not in tokens  # inside a text it is ordinary text
    parsed = server.post("/tokenize", model="bpe", prompt="a<|endoftext|>b", parse_special=True).json["tokens"]
    assert parsed == [*tokenizer.encode("a"), tokenizer.end_of_text, *tokenizer.encode("b")]
    assert server.request("GET", "/tokenizer_info?model=char").json["eos_token"] is None


def test_the_version_is_that_of_octavo(server: RunningServer) -> None:
    assert server.request("GET", "/version").json == {"version": octavo.__version__}


def test_the_tokenizer_routes_refuse_invalid_requests(server: RunningServer) -> None:
    openai_error(server.post("/tokenize", prompt="a"), 400, "model")  # several models are served
    openai_error(server.post("/tokenize", model="char", prompt="猫"), 400, "prompt")
    openai_error(server.post("/tokenize", model="char", prompt=5), 400, "prompt")
    openai_error(server.post("/detokenize", model="char", tokens=[10**6]), 400, "tokens")
    openai_error(server.post("/detokenize", model="char", tokens=[True]), 400, "tokens")
    openai_error(server.request("GET", "/tokenizer_info"), 400, "model")
    openai_error(server.request("GET", "/tokenizer_info?model=x"), 404, "model", "model_not_found")


def test_metrics_count_requests_and_tokens(server: RunningServer) -> None:
    def value(metric: str) -> float:
        page = server.request("GET", "/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        rows = [row for row in page.body.decode().splitlines() if row.startswith(f"{metric} ")]
        return float(rows[0].rpartition(" ")[2]) if rows else 0.0

    metrics = [
        'octavo_requests_total{route="/v1/completions",status="200"}',
        'octavo_prompt_tokens_total{model="bpe"}',
        'octavo_generated_tokens_total{model="bpe"}',
        'octavo_time_to_first_token_seconds_count{model="bpe"}',
        'octavo_inter_token_latency_seconds_count{model="bpe"}',
        'octavo_requests_total{route="other",status="404"}',
    ]
    before = [value(metric) for metric in metrics]
    usage = server.complete("the cat", model="bpe", max_tokens=6, n=2).json["usage"]
    server.request("GET", "/nowhere")
    increases = [value(metric) - old for metric, old in zip(metrics, before, strict=True)]
    generated = usage["completion_tokens"]  # fewer than 12 if an answer ends early
    assert increases == [1, usage["prompt_tokens"], generated, 2, generated - 2, 1]
    assert value('octavo_slots{model="char"}') == 8
    assert value('octavo_slots_busy{model="char"}') == value('octavo_queue{model="char"}') == 0
