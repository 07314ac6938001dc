"""The completions API: prompts, choices, log-probabilities, stop strings, streams, usage, errors."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.model import GPT
from octavo.server import load_model
from octavo.server.requests import CompletionRequest
from octavo.server.tokens import token_string
from octavo.tokenizers import Tokenizer
from serving import BLOCK, SETTINGS, Running, error_of, run_server, write_checkpoint

IDS = [5, 1, 7, 2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Iterator[Running]:
    """Three models: of characters, of bytes, and of byte pairs."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(built.parent))
        models = {
            name: load_model(name, write_checkpoint(folder / name, spec), SETTINGS)
            for name, spec in (("char", "char"), ("byte", "byte"), ("bpe", "bpe:300"))
        }
    with run_server(models) as running:
        yield running


def model(server: Running, name: str) -> tuple[GPT, Tokenizer]:
    loaded = server.models[name].checkpoint
    return loaded.model, loaded.tokenizer


def expected_logprobs(server: Running, name: str, ids: list[int]) -> torch.Tensor:
    """The log-probabilities of every next token by a full forward pass: (T - 1, V)."""
    gpt, tokenizer = model(server, name)
    with torch.no_grad():
        return gpt(torch.tensor([ids]))[0, :-1, : tokenizer.vocab_size].double().log_softmax(-1)


# The shape of an answer


def test_a_completion_has_openais_fields(server: Running) -> None:
    answer = server.complete("the cat", max_tokens=4)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json
    assert body.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert body["id"].startswith("cmpl-")
    assert (body["object"], body["model"]) == ("text_completion", "char")
    [choice] = body["choices"]
    assert choice.keys() == {"text", "index", "logprobs", "finish_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert len(choice["text"]) == 4
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_max_tokens_defaults_to_16(server: Running) -> None:
    for body in ({}, {"max_tokens": None}):
        assert len(server.text("the cat", **body)) == 16


def test_null_is_the_default(server: Running) -> None:
    nulls = dict.fromkeys(CompletionRequest.model_fields.keys() - {"model", "prompt", "seed"} | {"suffix"})
    assert server.text("the cat", seed=1, **nulls) == server.text("the cat", seed=1)


def test_a_prompt_is_text_ids_or_a_list_of_either(server: Running) -> None:
    _, tokenizer = model(server, "char")
    texts = ["the cat", "on the mat"]
    ids = [[int(i) for i in tokenizer.encode(text)] for text in texts]
    alone = [server.text(text, seed=3) for text in texts]
    for prompt in (texts, ids):
        body = server.complete(prompt, seed=3).json
        assert [choice["text"] for choice in body["choices"]] == alone
        assert [choice["index"] for choice in body["choices"]] == [0, 1]
        assert body["usage"]["prompt_tokens"] == 17
    assert server.text(ids[0], seed=3) == alone[0]


def test_greedy_text_follows_argmax(server: Running) -> None:
    gpt, tokenizer = model(server, "char")
    ids = [int(i) for i in tokenizer.encode("the cat sat")]
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(gpt(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size].argmax()))
    assert server.text("the cat sat", max_tokens=8, temperature=0) == tokenizer.decode(ids[-8:])


def test_an_empty_prompt_starts_after_a_line_break(server: Running) -> None:
    _, tokenizer = model(server, "char")
    [newline] = tokenizer.encode("\n")
    for prompt in ("", None):
        assert server.text(prompt, seed=1) == server.text([int(newline)], seed=1)
    echoed = server.complete("", seed=1, echo=True, logprobs=0, max_tokens=3).json
    assert "".join(echoed["choices"][0]["logprobs"]["tokens"]) == echoed["choices"][0]["text"]
    assert len(echoed["choices"][0]["text"]) == 3  # only what the client sent is echoed
    assert echoed["usage"]["prompt_tokens"] == 1


# Choices and seeds


def test_choice_i_is_drawn_with_seed_plus_i(server: Running) -> None:
    three = server.complete("the", n=3, seed=40).json
    texts = [choice["text"] for choice in three["choices"]]
    assert texts == [server.text("the", seed=40 + i) for i in range(3)]
    assert len(set(texts)) == 3
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["prompt_tokens"] == 3
    assert three["usage"]["completion_tokens"] == 48


def test_choices_are_numbered_across_prompts(server: Running) -> None:
    body = server.complete(["the", "cat"], n=2, seed=40, max_tokens=5).json
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    alone = [server.text(prompt, seed=40 + i, max_tokens=5) for prompt in ("the", "cat") for i in (0, 1)]
    assert [choice["text"] for choice in body["choices"]] == alone
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens"] == 20


def test_without_a_seed_texts_differ(server: Running) -> None:
    assert len({server.text("the") for _ in range(5)}) > 1


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63 - 1])
def test_every_seed_of_openai_is_accepted(server: Running, seed: int) -> None:
    assert server.text("the", n=2, seed=seed) == server.text("the", seed=seed)


def test_a_seed_gives_the_same_text_beside_other_requests(server: Running) -> None:
    alone = {seed: server.text("the cat", seed=seed, max_tokens=40) for seed in range(8)}
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            beside = pool.map(lambda seed: server.text("the cat", seed=seed, max_tokens=40), range(8))
            assert dict(enumerate(beside)) == alone


def test_best_of_returns_the_texts_with_the_highest_mean_logprob_and_counts_all(server: Running) -> None:
    samples = server.complete("the", n=6, seed=7, logprobs=0).json["choices"]

    def mean(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    ranked = sorted(samples, key=mean, reverse=True)
    best = server.complete("the", best_of=6, n=2, seed=7).json
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in ranked[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == 96
    choice = server.complete("the", best_of=6, seed=7, logprobs=1, echo=True).json["choices"][0]
    assert choice["text"] == "the" + ranked[0]["text"]
    assert choice["logprobs"]["token_logprobs"][3:] == ranked[0]["logprobs"]["token_logprobs"]
    assert choice["logprobs"]["text_offset"] == list(range(19))


def test_sampling_settings_reach_the_engine(server: Running) -> None:
    greedy = server.text("the", temperature=0)
    assert greedy == server.text("the", top_k=1, seed=1) == server.text("the", top_p=0, seed=2)
    assert greedy == server.text("the", min_p=1, seed=3)
    _, tokenizer = model(server, "char")
    [cat] = tokenizer.encode("c")
    assert server.text("the", logit_bias={str(cat): 100}, max_tokens=5) == "ccccc"
    assert len(set(server.text("the", temperature=0, frequency_penalty=2, presence_penalty=2))) > len(set(greedy))
    assert server.text("the", temperature=0, repetition_penalty=50) != greedy


# Log-probabilities


@pytest.mark.parametrize("name", ["char", "bpe"])
def test_logprobs_equal_those_of_a_full_forward(server: Running, name: str) -> None:
    _, tokenizer = model(server, name)
    prompt = "the cat sat"
    choice = server.complete(prompt, model=name, echo=True, logprobs=3, max_tokens=5, seed=1).json["choices"][0]
    logprobs = choice["logprobs"]
    prompt_ids = [int(i) for i in tokenizer.encode(prompt)]
    strings = {token_string(tokenizer, i): i for i in range(tokenizer.vocab_size)}
    ids = prompt_ids + [strings[token] for token in logprobs["tokens"][len(prompt_ids) :]]
    expected = expected_logprobs(server, name, ids)
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    for i, (id, row) in enumerate(zip(ids[1:], expected, strict=True), start=1):
        assert logprobs["token_logprobs"][i] == pytest.approx(float(row[id]), abs=1e-4)
        most_likely = row.topk(3)
        top = logprobs["top_logprobs"][i]
        assert logprobs["token_logprobs"][i] == top[logprobs["tokens"][i]]  # exactly the same number
        assert len(top) == 3 + (id not in most_likely.indices.tolist())
        for best, value in zip(most_likely.indices.tolist(), most_likely.values.tolist(), strict=True):
            assert top[token_string(tokenizer, best)] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("name", ["char", "bpe", "byte"])
@pytest.mark.parametrize("echo", [True, False])
def test_text_offsets_locate_each_token_in_prompt_and_text(server: Running, name: str, echo: bool) -> None:
    prompt = "café, the €5"
    choice = server.complete(prompt, model=name, logprobs=0, echo=echo, seed=2, max_tokens=12).json["choices"][0]
    logprobs = choice["logprobs"]
    full_text = choice["text"] if echo else prompt + choice["text"]
    assert logprobs["text_offset"][0] == (0 if echo else len(prompt))
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith("bytes:") or full_text[offset:].startswith(token)


def test_logprobs_zero_returns_only_the_tokens_own(server: Running) -> None:
    logprobs = server.complete("the", logprobs=0, max_tokens=3).json["choices"][0]["logprobs"]
    assert [list(top.items()) for top in logprobs["top_logprobs"]] == [
        [(token, value)] for token, value in zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
    ]


def test_echo_without_new_tokens_scores_the_prompt(server: Running) -> None:
    body = server.complete("the cat", echo=True, max_tokens=0, logprobs=1).json
    [choice] = body["choices"]
    assert choice["text"] == "the cat"
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == 7
    assert body["usage"]["completion_tokens"] == 0
    assert server.text("the cat", max_tokens=0) == ""


def test_tokens_that_are_not_utf8_have_distinct_strings(server: Running) -> None:
    """As U+FFFD they would share one key of `top_logprobs`, and overwrite each other."""
    ids = [200, 201, 202, 203]
    logprobs = server.complete(ids, model="byte", echo=True, max_tokens=0, logprobs=5).json["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xc8", "bytes:\\xc9", "bytes:\\xca", "bytes:\\xcb"]
    for row, top in zip(expected_logprobs(server, "byte", ids), logprobs["top_logprobs"][1:], strict=True):
        assert len(top) in (5, 6)
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-4)


# Stops


def test_a_stop_string_ends_the_text_before_it(server: Running) -> None:
    text = server.text("the", seed=5, max_tokens=30)
    for stop in (text[10:13], [text[20:24], text[10:12]], [text[29:], text[10:11]]):
        body = server.complete("the", seed=5, max_tokens=30, stop=stop, logprobs=0).json
        [choice] = body["choices"]
        stops = [stop] if isinstance(stop, str) else stop
        cut = min(at for each in stops if (at := text.find(each)) >= 0)
        assert choice["text"] == text[:cut]
        assert choice["finish_reason"] == "stop"
        assert "".join(choice["logprobs"]["tokens"]) == text[:cut]
        assert cut <= body["usage"]["completion_tokens"] <= cut + 4  # the tokens of the stop string count


def test_a_stop_string_inside_a_token_cuts_the_token(server: Running) -> None:
    full = server.complete("the", model="bpe", seed=6, logprobs=0, max_tokens=50).json["choices"][0]
    token = next(t for t in full["logprobs"]["tokens"][3:] if len(t) > 1 and not t.startswith("bytes:"))
    cut = full["text"].find(token[1:])
    body = server.complete("the", model="bpe", seed=6, logprobs=0, max_tokens=50, stop=token[1:]).json["choices"][0]
    assert body["text"] == full["text"][:cut]
    assert body["finish_reason"] == "stop"
    count = len(body["logprobs"]["tokens"])
    assert body["logprobs"] == {key: value[:count] for key, value in full["logprobs"].items()}
    assert full["logprobs"]["text_offset"][count - 1] < 3 + cut <= full["logprobs"]["text_offset"][count]


def test_end_of_text_ends_the_text(server: Running) -> None:
    _, tokenizer = model(server, "bpe")
    body = server.complete("the", model="bpe", logit_bias={str(tokenizer.end_of_text): 100}).json
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("", "stop")
    assert body["usage"]["completion_tokens"] == 0


def test_a_full_context_ends_the_text(server: Running) -> None:
    """`--overflow stop`, the server's default."""
    body = server.complete("a" * (BLOCK - 4), max_tokens=100).json
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 5  # the last token needs no position
    assert server.complete("a" * BLOCK, max_tokens=100).json["usage"]["completion_tokens"] == 1


# Streams


def join_chunks(events: list[Any]) -> dict[int, dict[str, Any]]:
    """The choices of a stream, each joined from its chunks."""
    assert events[-1] == "[DONE]"
    choices: dict[int, dict[str, Any]] = {}
    for event in events[:-1]:
        for choice in event["choices"]:
            joined = choices.setdefault(choice["index"], {"text": "", "logprobs": None, "finish_reason": None})
            assert joined["finish_reason"] is None  # nothing follows the last chunk
            joined["text"] += choice["text"]
            joined["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"]:
                before = joined["logprobs"] or {key: [] for key in choice["logprobs"]}
                joined["logprobs"] = {key: before[key] + value for key, value in choice["logprobs"].items()}
    return choices


@pytest.mark.parametrize("name", ["char", "byte", "bpe"])
@pytest.mark.parametrize("extra", [
    {}, {"n": 3}, {"logprobs": 2}, {"logprobs": 2, "echo": True, "n": 2}, {"echo": True},
    {"max_tokens": 0, "echo": True}, {"stop": ["a", "th"]}, {"stop": ["e t", "  "], "logprobs": 1, "n": 4},
], ids=str)  # fmt: skip
def test_a_joined_stream_equals_the_answer(server: Running, name: str, extra: dict[str, Any]) -> None:
    body: dict[str, Any] = {"model": name, "seed": 11, "max_tokens": 30} | extra
    answer = server.complete(["the cat", "a mat"], **body).json
    streamed = server.complete(["the cat", "a mat"], stream=True, **body)
    assert streamed.status == 200
    assert streamed.headers["content-type"].startswith("text/event-stream")
    choices = join_chunks(streamed.events)
    for choice in answer["choices"]:
        assert choices.pop(choice.pop("index")) == choice
    assert choices == {}
    for event in streamed.events[:-1]:
        assert event.keys() == {"id", "object", "created", "model", "choices"}
        assert event["id"] == streamed.events[0]["id"]
        assert "\ufffd" not in json.dumps(event, ensure_ascii=False)


def test_a_stream_ends_with_usage_if_requested(server: Running) -> None:
    body: dict[str, Any] = {"seed": 1, "n": 2, "max_tokens": 5}
    events = server.complete("the", stream=True, stream_options={"include_usage": True}, **body).events
    *chunks, last, done = events
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    usage = server.complete("the", **body).json["usage"]
    assert last["usage"] | {"prompt_tokens_details": None} == usage | {"prompt_tokens_details": None}


def test_every_chunk_has_the_text_of_one_token(server: Running) -> None:
    events = server.complete("the", stream=True, max_tokens=6).events
    assert [len(event["choices"][0]["text"]) for event in events[:-1]] == [1] * 6 + [0]


# Token ids


@pytest.mark.parametrize("prompt", ["the cat", [5, 6, 7], ""])
@pytest.mark.parametrize("options", [{}, {"echo": True, "logprobs": 2}, {"stop": ["e"]}, {"n": 3}])
def test_token_ids_of_text_and_prompt_are_returned(server: Running, prompt: Any, options: dict[str, Any]) -> None:
    body = {
        "model": "byte",
        "prompt": prompt,
        "max_tokens": 24,
        "seed": 4,
        "temperature": 2,
        "return_token_ids": True,
    }
    choices = server.complete(**body | options).json["choices"]
    assert all(
        "token_ids" not in each
        for each in server.complete(**body | options | {"return_token_ids": False}).json["choices"]
    )
    tokenizer = server.models["byte"].checkpoint.tokenizer
    ids = prompt if isinstance(prompt, list) else [int(id) for id in tokenizer.encode(prompt or "\n")]
    events = server.complete(**body | options, stream=True).events[:-1]
    for at, choice in enumerate(choices):
        assert choice["prompt_token_ids"] == ids
        text = choice["text"].removeprefix(tokenizer.decode(ids) if options.get("echo") and prompt else "")
        decoder = tokenizer.decoder(errors="ignore")
        decoded = "".join(decoder.push(id) for id in choice["token_ids"])
        assert decoded.startswith(text)
        assert "stop" in options or decoded == text
        chunks = [event["choices"][0] for event in events if event["choices"][0]["index"] == at]
        assert [id for chunk in chunks for id in chunk["token_ids"]] == choice["token_ids"]
        assert chunks[0]["prompt_token_ids"] == ids
        assert all(chunk["prompt_token_ids"] is None for chunk in chunks[1:])
    if not options:  # a text can be continued from its ids
        half = choices[0]["token_ids"][:10]
        rest = server.complete(**body | {"prompt": ids + half, "temperature": 0, "max_tokens": 5}).json["choices"][0]
        assert rest["prompt_token_ids"] == ids + half


# Errors


@pytest.mark.parametrize(("field", "value"), [
    *(("n", value) for value in (0, -1, 129, 10**6, 10**400, 1.0, True, "1", [1])),
    *(("best_of", value) for value in (0, -1, 21, 10**6, 1.5, True, "2")),
    *(("max_tokens", value) for value in (-1, 10**9, 10**400, 1.5, True, "3")),
    *(("logprobs", value) for value in (-1, 6, 10**6, 0.5, True, False, "1")),
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
    *(("stop", value) for value in (5, [1], ["a"] * 5, "", ["a", ""], "a" * 300, {"a": 1}, [["a"]])),
    *(("logit_bias", value) for value in ([1], {"a": 1}, {"5": 101}, {"5": True}, {"5": "1"}, {"5": float("nan")},
                                         {"-1": 1}, {"1.5": 1}, {"99999999": 1}, {"9" * 50: 1})),
    *(("prompt", value) for value in ([], [[]], [1, "a"], [True], [1.0], [["a"]], [[1], "a"], {"a": 1}, 5, ["a"] * 129,
                                     [-1], [10**30], [[10**6]], [None], [["a", 1]])),
    *(("user", value) for value in (5, "a" * 2000)),
    *(("model", value) for value in (5, "", ["char"])),
    ("stream_options", 5), ("stream_options.include_usage", {"include_usage": 1}),
])  # fmt: skip
def test_a_field_out_of_bounds_is_refused_by_name(server: Running, field: str, value: Any) -> None:
    name = field.partition(".")[0]
    message = error_of(server.complete(**{name: value}), 400, param=field)
    assert message
    assert len(message) < 400


def test_contradicting_fields_are_refused(server: Running) -> None:
    assert "less than n=3" in error_of(server.complete(n=3, best_of=2), 400, "best_of")
    assert "streamed" in error_of(server.complete(best_of=2, stream=True), 400, "best_of")
    error_of(server.complete(["a"] * 128, n=2), 400, "n")
    error_of(server.complete(["a"] * 64, best_of=3), 400, "best_of")


def test_a_model_that_is_not_served_is_404(server: Running) -> None:
    message = error_of(server.complete(model="gpt-4"), 404, "model", "model_not_found")
    assert "'gpt-4'" in message
    assert "char, byte, bpe" in message
    assert "model" in error_of(server.post("/v1/completions", prompt="a"), 400, "model")


def test_a_prompt_that_is_too_long_is_refused_with_the_block_size(server: Running) -> None:
    for prompt in ("a" * (BLOCK + 1), "a" * 10_000, [1] * (BLOCK + 1), ["a", "a" * (BLOCK + 1)]):
        message = error_of(server.complete(prompt), 400, "prompt", "context_length_exceeded")
        assert f"block_size is {BLOCK}" in message


def test_unknown_characters_are_named(server: Running) -> None:
    message = error_of(server.complete("the 猫 cat ∑"), 400, "prompt")
    assert "'∑', '猫'" in message
    assert "--" not in message  # a command-line flag would not help a client
    error_of(server.complete("half \ud800 a pair", model="byte"), 400, "prompt")
    error_of(server.complete("a", model="\ud800"), 400, "model")
    error_of(server.complete("a", stop="\ud800"), 400, "stop")


def test_ids_outside_the_vocabulary_are_refused(server: Running) -> None:
    _, tokenizer = model(server, "char")
    assert str(tokenizer.vocab_size) in error_of(server.complete([0, tokenizer.vocab_size]), 400, "prompt")


def test_a_suffix_is_refused_with_the_reason(server: Running) -> None:
    assert "left to right" in error_of(server.complete(suffix="the end"), 400)


def test_unknown_fields_are_refused_if_they_would_change_the_text(server: Running) -> None:
    assert "messages" in error_of(server.complete(messages=[{"role": "user", "content": "hi"}]), 400)
    assert "ignore_eos" in error_of(server.complete(ignore_eos=True), 400)
    assert "'temperature'" in error_of(server.complete(temprature=0.5), 400)
    assert server.text(seed=1, ignore_eos=False, metadata={"a": 1}, unknown=5) == server.text(seed=1)
    error_of(server.complete(**{f"field {i}": i for i in range(100)}), 400)


@pytest.mark.parametrize("body", [
    b"", b"{", b"null", b"[]", b'"text"', b"5", b"\xff\xfe\x00", b'{"model": "char", "prompt": "a",}', b"[" * 50_000,
    b'{"a":' * 20_000, b'{"model": "char", "prompt": ' + b"9" * 10_000 + b"}", "ü{}".encode("utf-16"),
], ids=lambda body: repr(body[:12]))  # fmt: skip
def test_a_body_that_is_not_a_json_object_is_400(server: Running, body: bytes) -> None:
    answer = server.ask("POST", "/v1/completions", body, {"content-type": "application/json"})
    assert answer.status == 400
    assert answer.json["error"]["message"]
    assert answer.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_the_content_type_must_be_json(server: Running, kind: str | None) -> None:
    """A web page may send forms and plain text to any server without a preflight, but not JSON."""
    body = json.dumps({"model": "char", "prompt": "a"}).encode()
    answer = server.ask("POST", "/v1/completions", body, {"content-type": kind} if kind else {})
    assert "content-type: application/json" in error_of(answer, 400)


def test_unknown_routes_are_404_and_methods_405(server: Running) -> None:
    assert "'/v1/chat/completions'" in error_of(server.post("/v1/chat/completions", model="char"), 404)
    error_of(server.ask("GET", "/docs"), 404)
    error_of(server.ask("GET", "/v1/models/"), 404)
    answer = server.ask("GET", "/v1/completions")
    error_of(answer, 405)
    assert answer.headers["allow"] == "POST"


# The other routes


def test_models_are_listed(server: Running) -> None:
    listed = server.ask("GET", "/v1/models").json
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == ["char", "byte", "bpe"]
    for each in listed["data"]:
        assert server.ask("GET", f"/v1/models/{each['id']}").json == each
        assert each["object"] == "model"
        assert each["max_model_len"] == BLOCK
    error_of(server.ask("GET", "/v1/models/gpt-4"), 404, "model", "model_not_found")


@pytest.mark.parametrize("name", ["char", "byte", "bpe"])
def test_tokenize_and_detokenize_round_trip(server: Running, name: str) -> None:
    _, tokenizer = model(server, name)
    text = "café on the €5 mat\n"
    tokenized = server.post("/tokenize", model=name, prompt=text, add_special_tokens=False, return_token_strs=True).json
    assert tokenized["tokens"] == tokenizer.encode(text).tolist()
    assert (tokenized["count"], tokenized["max_model_len"]) == (len(tokenized["tokens"]), BLOCK)
    assert len(tokenized["token_strs"]) == tokenized["count"]
    assert server.post("/detokenize", model=name, tokens=tokenized["tokens"]).json == {"prompt": text}
    assert server.post("/tokenize", model=name, prompt="").json["tokens"] == []
    assert server.post("/detokenize", model=name, tokens=[]).json == {"prompt": ""}


def test_end_of_text_alone_is_tokenized_as_the_special_token(server: Running) -> None:
    _, tokenizer = model(server, "bpe")
    info = server.ask("GET", "/tokenizer_info?model=bpe").json
    assert info["eos_token"] == info["bos_token"] == "<|endoftext|>"
    assert server.post("/tokenize", model="bpe", prompt=info["eos_token"]).json["tokens"] == [tokenizer.end_of_text]
    within = server.post("/tokenize", model="bpe", prompt="a<|endoftext|>").json["tokens"]
    assert tokenizer.end_of_text not in within  # inside a text it is ordinary text
    assert server.ask("GET", "/tokenizer_info?model=char").json["eos_token"] is None


def test_the_tokenizer_routes_refuse_invalid_requests(server: Running) -> None:
    error_of(server.post("/tokenize", prompt="a"), 400, "model")  # several are served
    error_of(server.post("/tokenize", model="char", prompt="猫"), 400, "prompt")
    error_of(server.post("/tokenize", model="char", prompt=5), 400, "prompt")
    error_of(server.post("/detokenize", model="char", tokens=[10**6]), 400, "tokens")
    error_of(server.post("/detokenize", model="char", tokens=[True]), 400, "tokens")
    error_of(server.ask("GET", "/tokenizer_info"), 400, "model")
    error_of(server.ask("GET", "/tokenizer_info?model=x"), 404, "model", "model_not_found")


def test_a_cached_prompt_gives_the_same_text(server: Running) -> None:
    prompt = "the cat sat on the mat, and the rat sat"
    first, second = (server.complete(prompt, seed=9).json for _ in range(2))
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert second["choices"] == first["choices"]


def test_metrics_count_requests_and_tokens(server: Running) -> None:
    def value(line: str) -> float:
        page = server.ask("GET", "/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        rows = [row for row in page.body.decode().splitlines() if row.startswith(line + " ")]
        return float(rows[0].rpartition(" ")[2]) if rows else 0.0

    lines = [
        'octavo_requests_total{route="/v1/completions",status="200"}',
        'octavo_prompt_tokens_total{model="bpe"}',
        'octavo_generated_tokens_total{model="bpe"}',
        'octavo_time_to_first_token_seconds_count{model="bpe"}',
        'octavo_token_gap_seconds_count{model="bpe"}',
        'octavo_requests_total{route="other",status="404"}',
    ]
    before = [value(line) for line in lines]
    usage = server.complete("the cat", model="bpe", max_tokens=6, n=2).json["usage"]
    server.ask("GET", "/nowhere")
    gained = [value(line) - was for line, was in zip(lines, before, strict=True)]
    assert gained == [1, usage["prompt_tokens"], 12, 2, 10, 1]
    assert value('octavo_slots{model="char"}') == 8
    assert value('octavo_slots_busy{model="char"}') == value('octavo_queue{model="char"}') == 0
