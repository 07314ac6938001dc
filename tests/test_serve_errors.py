"""Invalid requests to the completions API get an error that names the field."""

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest

from serving import BLOCK, RunningServer, openai_error, serve_each_tokenizer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, native_cache: None) -> Iterator[RunningServer]:
    """A model of each tokenizer."""
    with serve_each_tokenizer(tmp_path_factory.mktemp("models")) as running:
        yield running


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("n", value) for value in (0, -1, 129, 10**6, 10**400, 1.0, True, "1", [1])),
        *(("best_of", value) for value in (0, -1, 21, 10**6, 1.5, True, "2")),
        *(("max_tokens", value) for value in (-1, 10**9, 10**400, 1.5, True, "3")),
        *(("logprobs", value) for value in (-1, 21, 10**6, 0.5, True, False, "1")),
        *(("temperature", value) for value in (-0.1, 2.1, 1e400, True, "1", float("nan"), float("inf"))),
        *(("top_p", value) for value in (-0.1, 1.1, True, "1", float("nan"))),
        *(("top_k", value) for value in (-2, 1.5, True, 10**30)),
        *(("min_p", value) for value in (-0.1, 1.1, True)),
        *(("presence_penalty", value) for value in (-2.1, 2.1, True, float("-inf"))),
        *(("frequency_penalty", value) for value in (-2.1, 2.1, "0", float("nan"))),
        *(("repetition_penalty", value) for value in (0, -1, 101, True, float("inf"))),
        *(("seed", value) for value in (1.5, True, "1", 2**63, -(2**63) - 1)),
        *(("echo", value) for value in (1, "true", 0)),
        *(("stream", value) for value in (1, "true")),
        *(("stop", value) for value in (5, [1], ["a"] * 33, "", ["a", ""], "a" * 300, {"a": 1}, [["a"]])),
        *(
            ("logit_bias", value)
            for value in (
                [1],
                {"a": 1},
                {"5": 101},
                {"5": True},
                {"5": "1"},
                {"5": float("nan")},
                {"-1": 1},
                {"1.5": 1},
                {"99999999": 1},
                {"9" * 50: 1},
            )
        ),
        *(
            ("prompt", value)
            for value in (
                [],
                [[]],
                [1, "a"],
                [True],
                [1.0],
                [["a"]],
                [[1], "a"],
                {"a": 1},
                5,
                ["a"] * 129,
                [-1],
                [10**30],
                [[10**6]],
                [None],
                [["a", 1]],
            )
        ),
        *(("user", value) for value in (5, "a" * 2000)),
        *(("model", value) for value in (5, ["char"])),
        *(("min_tokens", value) for value in (-1, 17, 10**9, True, "1")),
        *(("stop_token_ids", value) for value in (5, ["a"], [-1], [10**6], [True], [1] * 129)),
        *(("allowed_token_ids", value) for value in (5, [], ["a"], [-1], [10**6], [True], [1] * 65_537)),
        *(("bad_words", value) for value in ("a", [""], [1], ["a"] * 65, ["a" * 300], ["\ud800"])),
        *(("prompt_logprobs", value) for value in (-1, 21, True, "1")),
        *(("truncate_prompt_tokens", value) for value in (-2, True, "1", 10**9)),
        ("stream_options", 5),
        ("stream_options.include_usage", {"include_usage": 1}),
    ],
)
def test_an_error_names_the_field_that_is_invalid(server: RunningServer, field: str, value: Any) -> None:
    name = field.partition(".")[0]
    message = openai_error(server.complete(**{name: value}), 400, param=field)
    assert message
    assert len(message) < 400


def test_fields_that_contradict_each_other_are_refused(server: RunningServer) -> None:
    assert "less than n=3" in openai_error(server.complete(n=3, best_of=2), 400, "best_of")
    assert "streamed" in openai_error(server.complete(best_of=2, stream=True), 400, "best_of")
    openai_error(server.complete(["a"] * 128, n=2), 400, "n")
    openai_error(server.complete(["a"] * 64, best_of=3), 400, "best_of")
    assert "stream" in openai_error(server.complete(stream_options={"include_usage": True}), 400, "stream_options")
    assert "stream" in openai_error(server.complete(stream=True, prompt_logprobs=0), 400, "prompt_logprobs")
    assert server.complete(stream_options={}).status == 200  # nothing is asked for


def test_a_model_that_is_not_served_is_404(server: RunningServer) -> None:
    message = openai_error(server.complete(model="gpt-4"), 404, "model", "model_not_found")
    assert "'gpt-4'" in message
    assert "char, byte, bpe" in message
    assert "model" in openai_error(server.post("/v1/completions", prompt="a"), 400, "model")


def test_a_prompt_that_is_too_long_is_refused_with_the_block_size(server: RunningServer) -> None:
    for prompt in ("a" * (BLOCK + 1), "a" * 10_000, [1] * (BLOCK + 1), ["a", "a" * (BLOCK + 1)]):
        message = openai_error(server.complete(prompt), 400, "prompt", "context_length_exceeded")
        assert f"block_size is {BLOCK}" in message


def test_unknown_characters_are_named(server: RunningServer) -> None:
    message = openai_error(server.complete("the 猫 cat ∑"), 400, "prompt")
    assert "'∑', '猫'" in message
    assert "--" not in message  # clients have no command-line flags
    openai_error(server.complete("half \ud800 a pair", model="byte"), 400, "prompt")
    openai_error(server.complete("a", model="\ud800"), 400, "model")
    openai_error(server.complete("a", stop="\ud800"), 400, "stop")


def test_ids_outside_the_vocabulary_are_refused(server: RunningServer) -> None:
    tokenizer = server.tokenizer("char")
    assert str(tokenizer.vocab_size) in openai_error(server.complete([0, tokenizer.vocab_size]), 400, "prompt")


def test_a_suffix_is_refused_because_the_model_reads_left_to_right(server: RunningServer) -> None:
    assert "left to right" in openai_error(server.complete(suffix="the end"), 400)


def test_fields_of_other_servers_that_would_change_the_text_are_refused(server: RunningServer) -> None:
    """`test_serve_foreign_fields.py` has all of them."""
    assert "messages" in openai_error(server.complete(messages=[{"role": "user", "content": "hi"}]), 400)
    assert "'temperature'" in openai_error(server.complete(temprature=0.5), 400)
    assert "'unknown'" in openai_error(server.complete(unknown=5), 400)
    assert server.text(seed=1, response_format={"type": "text"}, metadata={"a": 1}) == server.text(seed=1)
    openai_error(server.complete(**{f"field {i}": i for i in range(100)}), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"5",
        b"\xff\xfe\x00",
        b'{"model": "char", "prompt": "a",}',
        b"[" * 50_000,
        b'{"a":' * 20_000,
        b'{"model": "char", "prompt": ' + b"9" * 10_000 + b"}",
        "ü{}".encode("utf-16"),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_a_body_that_is_not_a_json_object_is_400(server: RunningServer, body: bytes) -> None:
    response = server.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    assert response.status == 400
    assert response.json["error"]["message"]
    assert response.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_the_content_type_must_be_json(server: RunningServer, kind: str | None) -> None:
    """Without a preflight request, a web page may send forms and plain text to any server, but not JSON."""
    body = json.dumps({"model": "char", "prompt": "a"}).encode()
    response = server.request("POST", "/v1/completions", body, {"content-type": kind} if kind else {})
    assert "content-type: application/json" in openai_error(response, 400)


def test_unknown_routes_are_404_and_methods_405(server: RunningServer) -> None:
    assert "--docs" in openai_error(server.request("GET", "/docs"), 404, code="unknown_url")
    response = server.request("GET", "/v1/completions")
    openai_error(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "advice"),
    {
        "/chat/completions": "'/v1/chat/completions': check the client's base_url",
        "/api/chat": "chats are at /v1/chat/completions",
        "/v1/messages": "chats are at /v1/chat/completions",
        "/v1/responses": "chats are at /v1/chat/completions",
        "/completions": "'/v1/completions': check the client's base_url",
        "/v1/v1/completions": "'/v1/completions'",
        "//v1/completions": "'/v1/completions'",
        "/v1/completions/": "'/v1/completions'",
        "/v1/tokenize": "'/tokenize'",
        "/completion": "completions are at /v1/completions",
        "/v1/embeddings": "no embeddings",
    }.items(),
)
def test_a_path_of_another_server_is_404_with_the_path_here(server: RunningServer, path: str, advice: str) -> None:
    message = openai_error(server.post(path, model="char"), 404, code="unknown_url")
    assert message.startswith(f"there is no POST {path!r}")
    assert advice in message


def test_a_body_that_cannot_be_read_is_400_with_the_reason(server: RunningServer) -> None:
    reasons = {
        b'{"prompt": "\xff"}': "not UTF-8",
        b"[" * 50_000: "nested too deeply",
        b'{"n": %s}' % (b"9" * 10_000): "digits",
        b'{"n": }': "not JSON",
    }
    for body, reason in reasons.items():
        response = server.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        assert reason in openai_error(response, 400)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = server.request("POST", "/v1/completions", gzip.compress(b'{"prompt": "a"}'), headers)
    assert "'gzip'" in openai_error(response, 415)


@pytest.mark.parametrize("count", [0, 2049])
def test_a_wrong_number_of_messages_is_400_with_the_allowed_number(server: RunningServer, count: int) -> None:
    messages = [{"role": "user", "content": "the"}] * count
    message = openai_error(server.post("/v1/chat/completions", model="char", messages=messages), 400, "messages")
    assert message == f"messages: expected 1 to 2,048 items, not {count:,}"


def test_a_wrong_query_parameter_is_named(server: RunningServer) -> None:
    """Its message has nothing about a body."""
    for value in ("-1", "x"):
        response = server.request("GET", f"/runs/char/metrics?after={value}")
        assert openai_error(response, 400, "after").startswith("after: ")
