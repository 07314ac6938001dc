"""The completions API: prompts, choices, log-probabilities, stop strings, streams, usage, token ids."""

import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from octavo.server.api_error import ApiError
from octavo.server.completions import build_text_requests
from octavo.server.requests import CompletionRequest
from octavo.server.text_requests import check_logprobs
from octavo.server.tokens import token_string
from octavo.tokenizers import StreamDecoder
from serving import BLOCK, LIMITS, RunningServer, serve_each_tokenizer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, native_cache: None) -> Iterator[RunningServer]:
    """A model of each tokenizer."""
    with serve_each_tokenizer(tmp_path_factory.mktemp("models")) as running:
        yield running


def expected_logprobs(server: RunningServer, name: str, ids: list[int]) -> torch.Tensor:
    """The log-probabilities (T - 1, V) of the next tokens by a full forward pass."""
    gpt, tokenizer = server.gpt(name), server.tokenizer(name)
    with torch.no_grad():
        return gpt(torch.tensor([ids]))[0, :-1, : tokenizer.vocab_size].double().log_softmax(-1)


# The fields of a response


def test_a_completion_has_openais_fields(server: RunningServer) -> None:
    response = server.complete("the cat", max_tokens=4)
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json
    assert body.keys() == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert body["id"].startswith("cmpl-")
    assert (body["object"], body["model"]) == ("text_completion", "char")
    [choice] = body["choices"]
    assert choice.keys() == {"text", "index", "logprobs", "finish_reason", "stop_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert len(choice["text"]) == 4
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_max_tokens_defaults_to_16(server: RunningServer) -> None:
    for body in ({}, {"max_tokens": None}):
        assert len(server.text("the cat", **body)) == 16


def test_null_means_the_default(server: RunningServer) -> None:
    nulls = dict.fromkeys(CompletionRequest.model_fields.keys() - {"model", "prompt", "seed"} | {"suffix"})
    assert server.text("the cat", seed=1, **nulls) == server.text("the cat", seed=1)


def test_a_prompt_is_a_text_or_token_ids_or_a_list_of_either(server: RunningServer) -> None:
    tokenizer = server.tokenizer("char")
    texts = ["the cat", "on the mat"]
    ids = [[int(i) for i in tokenizer.encode(text)] for text in texts]
    alone = [server.text(text, seed=3) for text in texts]
    for prompt in (texts, ids):
        body = server.complete(prompt, seed=3).json
        assert [choice["text"] for choice in body["choices"]] == alone
        assert [choice["index"] for choice in body["choices"]] == [0, 1]
        assert body["usage"]["prompt_tokens"] == 17
    assert server.text(ids[0], seed=3) == alone[0]


def test_greedy_text_follows_argmax(server: RunningServer) -> None:
    gpt, tokenizer = server.gpt("char"), server.tokenizer("char")
    ids = [int(i) for i in tokenizer.encode("the cat sat")]
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(gpt(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size].argmax()))
    assert server.text("the cat sat", max_tokens=8, temperature=0) == tokenizer.decode(ids[-8:])


def test_an_empty_prompt_starts_after_a_line_break(server: RunningServer) -> None:
    tokenizer = server.tokenizer("char")
    [newline] = tokenizer.encode("\n")
    for prompt in ("", None):
        assert server.text(prompt, seed=1) == server.text([int(newline)], seed=1)
    echoed = server.complete("", seed=1, echo=True, logprobs=0, max_tokens=3).json
    assert "".join(echoed["choices"][0]["logprobs"]["tokens"]) == echoed["choices"][0]["text"]
    assert len(echoed["choices"][0]["text"]) == 3  # only what the client sent is echoed
    assert echoed["usage"]["prompt_tokens"] == 1


# Choices and seeds


def test_choice_i_is_drawn_with_seed_plus_i(server: RunningServer) -> None:
    three = server.complete("the", n=3, seed=40).json
    texts = [choice["text"] for choice in three["choices"]]
    assert texts == [server.text("the", seed=40 + i) for i in range(3)]
    assert len(set(texts)) == 3
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["prompt_tokens"] == 3
    assert three["usage"]["completion_tokens"] == 48


def test_choices_are_numbered_across_prompts(server: RunningServer) -> None:
    body = server.complete(["the", "cat"], n=2, seed=40, max_tokens=5).json
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    alone = [server.text(prompt, seed=40 + i, max_tokens=5) for prompt in ("the", "cat") for i in (0, 1)]
    assert [choice["text"] for choice in body["choices"]] == alone
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens"] == 20


def test_without_a_seed_texts_differ(server: RunningServer) -> None:
    assert len({server.text("the") for _ in range(5)}) > 1


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63 - 1])
def test_every_seed_of_openai_is_accepted(server: RunningServer, seed: int) -> None:
    assert server.text("the", n=2, seed=seed) == server.text("the", seed=seed)


def test_a_seed_gives_the_same_text_in_any_batch(server: RunningServer) -> None:
    alone = {seed: server.text("the cat", seed=seed, max_tokens=40) for seed in range(8)}
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            batched = pool.map(lambda seed: server.text("the cat", seed=seed, max_tokens=40), range(8))
            assert dict(enumerate(batched)) == alone


def test_a_cached_prefix_does_not_change_the_text(server: RunningServer) -> None:
    prompt = "the cat sat on the mat, and the rat sat"
    first, second = (server.complete(prompt, seed=9).json for _ in range(2))
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert second["choices"] == first["choices"]


def test_best_of_returns_the_texts_with_the_highest_mean_logprob_and_usage_counts_all(server: RunningServer) -> None:
    samples = server.complete("the", n=6, seed=7, logprobs=0).json["choices"]

    def mean_logprob(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    ranked = sorted(samples, key=mean_logprob, reverse=True)
    best = server.complete("the", best_of=6, n=2, seed=7).json
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in ranked[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == 96
    choice = server.complete("the", best_of=6, seed=7, logprobs=1, echo=True).json["choices"][0]
    assert choice["text"] == "the" + ranked[0]["text"]
    assert choice["logprobs"]["token_logprobs"][3:] == ranked[0]["logprobs"]["token_logprobs"]
    assert choice["logprobs"]["text_offset"] == list(range(19))


def test_sampling_settings_reach_the_engine(server: RunningServer) -> None:
    greedy = server.text("the", temperature=0)
    assert greedy == server.text("the", top_k=1, seed=1) == server.text("the", top_p=0, seed=2)
    assert greedy == server.text("the", min_p=1, seed=3)
    tokenizer = server.tokenizer("char")
    [cat] = tokenizer.encode("c")
    assert server.text("the", logit_bias={str(cat): 100}, max_tokens=5) == "ccccc"
    assert len(set(server.text("the", temperature=0, frequency_penalty=2, presence_penalty=2))) > len(set(greedy))
    assert server.text("the", temperature=0, repetition_penalty=50) != greedy


# Log-probabilities


@pytest.mark.parametrize("name", ["char", "bpe"])
def test_logprobs_equal_those_of_a_full_forward(server: RunningServer, name: str) -> None:
    tokenizer = server.tokenizer(name)
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
def test_text_offset_is_where_each_token_begins_in_prompt_and_text(
    server: RunningServer, name: str, echo: bool
) -> None:
    prompt = "café, the €5"
    choice = server.complete(prompt, model=name, logprobs=0, echo=echo, seed=2, max_tokens=12).json["choices"][0]
    logprobs = choice["logprobs"]
    full_text = choice["text"] if echo else prompt + choice["text"]
    assert logprobs["text_offset"][0] == (0 if echo else len(prompt))
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith("bytes:") or full_text[offset:].startswith(token)


def test_with_logprobs_0_the_only_top_token_is_the_sampled_one(server: RunningServer) -> None:
    logprobs = server.complete("the", logprobs=0, max_tokens=3).json["choices"][0]["logprobs"]
    assert [list(top.items()) for top in logprobs["top_logprobs"]] == [
        [(token, value)] for token, value in zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
    ]


def test_echo_without_new_tokens_scores_the_prompt(server: RunningServer) -> None:
    body = server.complete("the cat", echo=True, max_tokens=0, logprobs=1).json
    [choice] = body["choices"]
    assert choice["text"] == "the cat"
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == 7
    assert body["usage"]["completion_tokens"] == 0
    assert server.text("the cat", max_tokens=0) == ""


def test_tokens_that_are_not_utf8_have_distinct_strings(server: RunningServer) -> None:
    """If all of them were U+FFFD, they would share one key of `top_logprobs` and overwrite each other."""
    ids = [200, 201, 202, 203]
    logprobs = server.complete(ids, model="byte", echo=True, max_tokens=0, logprobs=5).json["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xc8", "bytes:\\xc9", "bytes:\\xca", "bytes:\\xcb"]
    for row, top in zip(expected_logprobs(server, "byte", ids), logprobs["top_logprobs"][1:], strict=True):
        assert len(top) in (5, 6)
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-4)


# Stop strings and other ends


def test_a_stop_string_ends_the_text_before_it(server: RunningServer) -> None:
    text = server.text("the", seed=5, max_tokens=30)
    for stop in (text[10:13], [text[20:24], text[10:12]], [text[29:], text[10:11]]):
        body = server.complete("the", seed=5, max_tokens=30, stop=stop, logprobs=0).json
        [choice] = body["choices"]
        stops = [stop] if isinstance(stop, str) else stop
        cut = min(text.find(each) for each in stops if each in text)
        assert choice["text"] == text[:cut]
        assert choice["finish_reason"] == "stop"
        assert "".join(choice["logprobs"]["tokens"]) == text[:cut]
        assert cut <= body["usage"]["completion_tokens"] <= cut + 4  # the tokens of the stop string count


def test_a_stop_string_inside_a_token_cuts_the_token(server: RunningServer) -> None:
    full = server.complete("the", model="bpe", seed=6, logprobs=0, max_tokens=50).json["choices"][0]
    token = next(t for t in full["logprobs"]["tokens"][3:] if len(t) > 1 and not t.startswith("bytes:"))
    cut = full["text"].find(token[1:])
    body = server.complete("the", model="bpe", seed=6, logprobs=0, max_tokens=50, stop=token[1:]).json["choices"][0]
    assert body["text"] == full["text"][:cut]
    assert body["finish_reason"] == "stop"
    count = len(body["logprobs"]["tokens"])
    assert body["logprobs"] == {key: value[:count] for key, value in full["logprobs"].items()}
    assert full["logprobs"]["text_offset"][count - 1] < 3 + cut <= full["logprobs"]["text_offset"][count]


def test_end_of_text_ends_the_text(server: RunningServer) -> None:
    tokenizer = server.tokenizer("bpe")
    body = server.complete("the", model="bpe", logit_bias={str(tokenizer.end_of_text): 100}).json
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("", "stop")
    assert body["usage"]["completion_tokens"] == 0


def test_special_tokens_in_a_prompt_are_parsed_if_asked_for(server: RunningServer) -> None:
    tokenizer, prompt = server.tokenizer("bpe"), "a<|endoftext|>b"
    ids = [*tokenizer.encode("a").tolist(), tokenizer.end_of_text, *tokenizer.encode("b").tolist()]
    options = {"model": "bpe", "seed": 1, "return_token_ids": True, "echo": True}
    parsed = server.complete(prompt, parse_special=True, **options).json["choices"][0]
    assert parsed["prompt_token_ids"] == ids
    assert parsed["text"].startswith(prompt)
    assert parsed["token_ids"] == server.complete(ids, **options).json["choices"][0]["token_ids"]
    ordinary = server.complete(prompt, **options).json["choices"][0]
    assert ordinary["prompt_token_ids"] == tokenizer.encode(prompt).tolist()
    assert server.complete("a", model="char", parse_special=True).status == 400


def test_a_full_context_ends_the_text(server: RunningServer) -> None:
    """`--overflow stop`, the server's default."""
    body = server.complete("a" * (BLOCK - 4), max_tokens=100).json
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 5  # the last token needs no position
    assert server.complete("a" * BLOCK, max_tokens=100).json["usage"]["completion_tokens"] == 1


# Streams


def join_chunks(events: list[Any]) -> dict[int, dict[str, Any]]:
    """The choices of a stream, by index; the chunks of each are joined."""
    assert events[-1] == "[DONE]"
    choices: dict[int, dict[str, Any]] = {}
    for event in events[:-1]:
        for choice in event["choices"]:
            joined = choices.setdefault(choice["index"], {"text": "", "logprobs": None, "finish_reason": None})
            joined["stop_reason"] = choice["stop_reason"]
            assert joined["finish_reason"] is None  # nothing follows the last chunk
            joined["text"] += choice["text"]
            joined["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"]:
                before = joined["logprobs"] or {key: [] for key in choice["logprobs"]}
                joined["logprobs"] = {key: before[key] + value for key, value in choice["logprobs"].items()}
    return choices


@pytest.mark.parametrize("name", ["char", "byte", "bpe"])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 3},
        {"logprobs": 2},
        {"logprobs": 2, "echo": True, "n": 2},
        {"echo": True},
        {"max_tokens": 0, "echo": True},
        {"stop": ["a", "th"]},
        {"stop": ["e t", "  "], "logprobs": 1, "n": 4},
    ],
    ids=str,
)
def test_a_joined_stream_equals_the_response_without_streaming(
    server: RunningServer, name: str, extra: dict[str, Any]
) -> None:
    body: dict[str, Any] = {"model": name, "seed": 11, "max_tokens": 30} | extra
    response = server.complete(["the cat", "a mat"], **body).json
    streamed = server.complete(["the cat", "a mat"], stream=True, **body)
    assert streamed.status == 200
    assert streamed.headers["content-type"].startswith("text/event-stream")
    choices = join_chunks(streamed.events)
    for choice in response["choices"]:
        assert choices.pop(choice.pop("index")) == choice
    assert choices == {}
    for event in streamed.events[:-1]:
        assert event.keys() == {"id", "object", "created", "model", "system_fingerprint", "choices"}
        assert event["id"] == streamed.events[0]["id"]
        assert "\ufffd" not in json.dumps(event, ensure_ascii=False)


def test_a_stream_ends_with_usage_if_requested(server: RunningServer) -> None:
    body: dict[str, Any] = {"seed": 1, "n": 2, "max_tokens": 5}
    events = server.complete("the", stream=True, stream_options={"include_usage": True}, **body).events
    *chunks, last, done = events
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    usage = server.complete("the", **body).json["usage"]
    assert last["usage"] | {"prompt_tokens_details": None} == usage | {"prompt_tokens_details": None}


def test_each_chunk_has_the_text_of_one_token(server: RunningServer) -> None:
    events = server.complete("the", stream=True, max_tokens=6).events
    assert [len(event["choices"][0]["text"]) for event in events[:-1]] == [1] * 6 + [0]


# return_token_ids


@pytest.mark.parametrize("prompt", ["the cat", [5, 6, 7], ""])
@pytest.mark.parametrize("options", [{}, {"echo": True, "logprobs": 2}, {"stop": ["e"]}, {"n": 3}])
def test_token_ids_of_text_and_prompt_are_returned(server: RunningServer, prompt: Any, options: dict[str, Any]) -> None:
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
    for index, choice in enumerate(choices):
        assert choice["prompt_token_ids"] == ids
        text = choice["text"].removeprefix(tokenizer.decode(ids) if options.get("echo") and prompt else "")
        decoder = StreamDecoder(tokenizer, errors="ignore")
        decoded = "".join(decoder.push(id) for id in choice["token_ids"])
        assert decoded.startswith(text)
        assert "stop" in options or decoded == text
        chunks = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert [id for chunk in chunks for id in chunk["token_ids"]] == choice["token_ids"]
        assert chunks[0]["prompt_token_ids"] == ids
        assert all(chunk["prompt_token_ids"] is None for chunk in chunks[1:])
    if not options:  # a text can be continued from its ids
        half = choices[0]["token_ids"][:10]
        rest = server.complete(**body | {"prompt": ids + half, "temperature": 0, "max_tokens": 5}).json["choices"][0]
        assert rest["prompt_token_ids"] == ids + half


# vLLM's fields


def only_choice(server: RunningServer, **body: Any) -> dict[str, Any]:
    response = server.complete(**{"prompt": "the", "seed": 5, "max_tokens": 30} | body)
    assert response.status == 200, response.body
    [choice] = response.json["choices"]
    return dict(choice)


def test_stop_reason_is_the_string_or_token_that_ended_the_text(server: RunningServer) -> None:
    text = server.text("the", seed=5, max_tokens=30)
    string, [id] = text[10:13], server.tokenizer("char").encode(text[10]).tolist()
    cut = text.index(text[10])
    for include in (False, True):
        by_string = only_choice(server, stop=["zzzz", string], include_stop_str_in_output=include)
        assert by_string["text"] == text[: text.index(string)] + (string if include else "")
        assert (by_string["finish_reason"], by_string["stop_reason"]) == ("stop", string)
        by_id = only_choice(server, stop_token_ids=[id], include_stop_str_in_output=include, return_token_ids=True)
        assert by_id["text"] == text[: cut + include]
        assert len(by_id["token_ids"]) == cut + include
        assert (by_id["finish_reason"], by_id["stop_reason"]) == ("stop", id)
    ended = only_choice(server, model="bpe", logit_bias={str(server.tokenizer("bpe").end_of_text): 100})
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", None)


def test_min_tokens_and_ignore_eos_prolong_a_text(server: RunningServer) -> None:
    eos = {"model": "bpe", "logit_bias": {str(server.tokenizer("bpe").end_of_text): 100}, "max_tokens": 9}
    assert len(only_choice(server, **eos, return_token_ids=True)["token_ids"]) == 0
    assert len(only_choice(server, **eos, return_token_ids=True, min_tokens=4)["token_ids"]) == 4
    ignored = only_choice(server, **eos, return_token_ids=True, ignore_eos=True)
    assert ignored["token_ids"] == [server.tokenizer("bpe").end_of_text] * 9
    assert ignored["finish_reason"] == "length"


def test_thirty_two_stop_strings_are_accepted(server: RunningServer) -> None:
    text = server.text("the", seed=5, max_tokens=30)
    assert only_choice(server, stop=[f"zz{i}" for i in range(31)] + [text[8:11]])["stop_reason"] == text[8:11]


def test_tokens_are_allowed_and_words_forbidden(server: RunningServer) -> None:
    ids = server.tokenizer("char").encode("act").tolist()
    assert set(only_choice(server, allowed_token_ids=ids)["text"]) <= set("act")
    text = server.text("the", seed=5, max_tokens=30)
    changed, end = only_choice(server, bad_words=[text[10:12]])["text"], text.index(text[10:12]) + 1
    assert text[10:12] not in changed
    assert changed[:end] == text[:end]
    response = server.complete("the", allowed_token_ids=ids[:1], bad_words=["aa"], max_tokens=5)
    assert response.status == 400
    assert "no token is left" in response.json["error"]["message"]


@pytest.mark.parametrize("prompt", ["the cat sat", list(range(20)), "the " * 100])
def test_a_truncated_prompt_is_its_last_tokens(server: RunningServer, prompt: Any) -> None:
    ids = prompt if isinstance(prompt, list) else server.tokenizer("char").encode(prompt).tolist()
    options: dict[str, Any] = {"return_token_ids": True, "echo": True}
    for keep, kept in ((5, ids[-5:]), (-1, ids[-(BLOCK - 30) :])):
        truncated = only_choice(server, prompt=prompt, truncate_prompt_tokens=keep, **options)
        assert truncated == only_choice(server, prompt=kept, **options)
        assert truncated["prompt_token_ids"] == kept
    if len(ids) > BLOCK:
        response = server.complete(prompt, truncate_prompt_tokens=BLOCK + 1)
        assert response.json["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("name", ["char", "bpe", "byte"])
def test_prompt_logprobs_equal_those_of_a_full_forward(server: RunningServer, name: str) -> None:
    tokenizer = server.tokenizer(name)
    ids = tokenizer.encode("the café").tolist()
    body: dict[str, Any] = {"prompt": ids, "model": name, "n": 2, "max_tokens": 2}
    first, second = server.complete(**body, prompt_logprobs=3).json["choices"]
    assert first["prompt_logprobs"] == second["prompt_logprobs"]
    assert first["logprobs"] is None
    nothing, *places = first["prompt_logprobs"]
    assert nothing is None
    for id, row, place in zip(ids[1:], expected_logprobs(server, name, ids), places, strict=True):
        ranked = row.argsort(descending=True).tolist()
        assert set(map(int, place)) == {*ranked[:3], id}
        for each, value in place.items():
            assert value["logprob"] == pytest.approx(float(row[int(each)]), abs=1e-4)
            assert value["rank"] == 1 + ranked.index(int(each))
            assert value["decoded_token"] == token_string(tokenizer, int(each))
    # With echo, both kinds of log-probabilities are those that they would be alone.
    both = server.complete(**body, prompt_logprobs=3, echo=True, logprobs=1, seed=1).json["choices"][0]
    echoed = server.complete(**body, echo=True, logprobs=1, seed=1).json["choices"][0]
    assert both.pop("prompt_logprobs") == first["prompt_logprobs"]
    assert both == echoed
    unechoed = server.complete(**body, prompt_logprobs=3, logprobs=1).json["choices"][0]
    assert len(unechoed["logprobs"]["tokens"]) == 2
    assert server.complete("", model=name, prompt_logprobs=1).json["choices"][0]["prompt_logprobs"] == []


def test_tokens_can_be_written_as_ids(server: RunningServer) -> None:
    body: dict[str, Any] = {"model": "byte", "logprobs": 20, "max_tokens": 6, "return_token_ids": True}
    plain, by_id = only_choice(server, **body), only_choice(server, **body, return_tokens_as_token_ids=True)
    assert by_id["logprobs"]["tokens"] == [f"token_id:{id}" for id in by_id["token_ids"]]
    assert by_id["logprobs"]["token_logprobs"] == plain["logprobs"]["token_logprobs"]
    for top, by_text in zip(by_id["logprobs"]["top_logprobs"], plain["logprobs"]["top_logprobs"], strict=True):
        assert list(top.values()) == list(by_text.values())
        assert len(top) in (20, 21)


def test_every_event_can_have_the_usage_so_far(server: RunningServer) -> None:
    body: dict[str, Any] = {"seed": 1, "max_tokens": 6, "n": 2, "stream": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last, _ = server.complete("the", stream_options=options, **body).events
    for index in (0, 1):
        usages = [chunk["usage"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert [usage["completion_tokens"] for usage in usages] == [1, 2, 3, 4, 5, 6, 6]
        assert {usage["prompt_tokens"] for usage in usages} == {3}
    assert last["usage"]["completion_tokens"] == 12
    without = server.complete("the", stream_options={"continuous_usage_stats": True}, **body).events
    assert all("usage" not in event for event in without[:-1])


def test_too_many_logprobs_in_one_response_are_refused(server: RunningServer) -> None:
    model, few = server.models["char"], dataclasses.replace(LIMITS, logprob_values=3 * 21 + 16 * 21 - 1)
    requests = build_text_requests(model, CompletionRequest(prompt="the", logprobs=20, echo=True), "")
    with pytest.raises(ApiError, match="399 log-probabilities"):
        check_logprobs(model, requests, few)


# The model of a request


def test_the_model_may_be_named_in_the_path(server: RunningServer) -> None:
    """lm-eval sends no model to /tokenizer_info, but it keeps what comes before /v1 in its base_url."""
    named = server.post("/models/byte/v1/completions", prompt="the", seed=1).json
    assert (named["model"], named["choices"][0]["text"]) == ("byte", server.text("the", model="byte", seed=1))
    assert server.request("GET", "/models/bpe/tokenizer_info").json["kind"] == "bpe"
    assert server.post("/models/byte/tokenize", prompt="é").json["count"] == 2
    assert server.post("/models/byte/v1/completions", prompt="the", model="byte").status == 200
    assert server.post("/models/byte/v1/completions", prompt="the", model="bpe").status == 400
    assert server.post("/models/nowhere/tokenize", prompt="the").status == 404
    assert "/models/char/v1/completions" in server.post("/v1/completions", prompt="the").json["error"]["message"]
