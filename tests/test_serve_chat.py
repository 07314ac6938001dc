"""Chats: the same texts as completions, in OpenAI's form for conversations."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.runs import Run
from octavo.server import load_model
from octavo.server.limits import Limits
from serving import BLOCK, SETTINGS, Response, RunningServer, openai_error, run_server, write_checkpoint
from test_chat import CHATML

OPEN_WEBUI = json.loads((Path(__file__).parent / "open_webui.json").read_text(encoding="utf-8"))
USER = [{"role": "user", "content": "the cat"}]
TRANSCRIPT = "User: the cat\nAssistant:"
STOP = ["\nSystem:", "\nUser:", "\nAssistant:", "\nTool:"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, native_cache: None) -> Iterator[RunningServer]:
    """`small` has no chat template, `template` is the same model with one, `strict` with one that rejects all."""
    small = load_model("small", write_checkpoint(tmp_path_factory.mktemp("models") / "small", "bpe:300"), SETTINGS)
    templates = {"template": CHATML, "strict": "{{ raise_exception('roles must alternate') }}"}
    others = {id: dataclasses.replace(small, id=id, own_chat_template=text) for id, text in templates.items()}
    with run_server({"small": small, **others}) as running:
        yield running


def chat(server: RunningServer, messages: Any = USER, model: str = "small", **fields: Any) -> Response:
    return server.post("/v1/chat/completions", model=model, messages=messages, **fields)


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "several": {"n": 3, "temperature": 0.8, "top_k": 20},
    "penalties": {"presence_penalty": 1.0, "logit_bias": {"5": -100}, "min_tokens": 5},
    "a stop string": {"stop": "e", "include_stop_str_in_output": True},
    "stop strings": {"stop": ["e", "t"]},
    "token ids": {"return_token_ids": True},
}


@pytest.mark.parametrize("model", ["small", "template"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_chat_has_the_texts_of_a_completion(server: RunningServer, model: str, name: str) -> None:
    """The prompt is what the conversation becomes; its stop strings are used too."""
    options, is_plain = {"seed": 3, "max_tokens": 12} | OPTIONS[name], model == "small"
    answer = chat(server, model=model, **options).json
    prompt = TRANSCRIPT if is_plain else "<|endoftext|>user\nthe cat\n<|endoftext|>assistant\n"
    stop = options.get("stop", [])
    stops = [stop] * isinstance(stop, str) or [*stop]
    body = options | {"stop": stops + STOP * is_plain, "parse_special": not is_plain}
    completion = server.complete(prompt, model=model, **body).json
    assert (answer["object"], answer["model"], answer["usage"]["completion_tokens"]) == (
        "chat.completion",
        model,
        completion["usage"]["completion_tokens"],
    )
    assert answer["id"].startswith("chatcmpl-")
    assert answer["usage"]["prompt_tokens"] == completion["usage"]["prompt_tokens"]
    for choice, expected in zip(answer["choices"], completion["choices"], strict=True):
        text = {"role": "assistant", "content": expected.pop("text"), "refusal": None}
        assert choice == expected | {"message": text}

    *events, end = chat(server, model=model, stream=True, **options).events
    assert end == "[DONE]"
    assert {(event["object"], event["system_fingerprint"]) for event in events} == {("chat.completion.chunk", "small")}
    for choice in answer["choices"]:
        parts = [each for event in events for each in event["choices"] if each["index"] == choice["index"]]
        assert [part["delta"].get("role") for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
        assert "".join(part["delta"]["content"] for part in parts) == choice["message"]["content"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]


def test_a_stream_ends_with_the_usage(server: RunningServer) -> None:
    options = {"max_tokens": 5, "seed": 1}
    *events, last, _ = chat(server, stream=True, stream_options={"include_usage": True}, **options).events
    assert all(event["usage"] is None for event in events)
    assert (last["choices"], last["usage"]) == ([], chat(server, **options).json["usage"] | {})
    assert all("usage" not in event for event in chat(server, stream=True, **options).events[:-1])


def test_logprobs_have_the_form_of_chats(server: RunningServer) -> None:
    options = {"max_tokens": 6, "seed": 2, "logprobs": True}
    [choice] = chat(server, top_logprobs=3, **options).json["choices"]
    [expected] = server.complete(TRANSCRIPT, max_tokens=6, seed=2, logprobs=3, stop=STOP).json["choices"]
    content = choice["logprobs"]["content"]
    assert [each["token"] for each in content] == expected["logprobs"]["tokens"]
    assert [each["logprob"] for each in content] == expected["logprobs"]["token_logprobs"]
    text = b"".join(bytes(each["bytes"]) for each in content)
    assert text.decode(errors="ignore") == choice["message"]["content"]
    for each, top in zip(content, expected["logprobs"]["top_logprobs"], strict=True):
        assert len(each["top_logprobs"]) == 3
        assert {other["token"]: other["logprob"] for other in each["top_logprobs"]}.items() <= top.items()
    assert all(each["top_logprobs"] == [] for each in chat(server, **options).json["choices"][0]["logprobs"]["content"])
    events = chat(server, top_logprobs=3, stream=True, **options).events[:-1]
    streamed = [each for event in events for part in event["choices"] for each in part["logprobs"]["content"]]
    assert streamed == content


def test_an_answer_ends_by_default_where_the_context_is_full(server: RunningServer) -> None:
    usage = chat(server, ignore_eos=True, stop=None, model="template").json["usage"]
    assert usage["total_tokens"] == BLOCK + 1  # nothing follows the last token, so it needs no position
    for name in ("max_tokens", "max_completion_tokens"):
        assert chat(server, ignore_eos=True, model="template", **{name: 3}).json["usage"]["completion_tokens"] == 3


def test_the_oldest_turns_of_a_long_conversation_are_left_out(server: RunningServer) -> None:
    turns = [{"role": role, "content": "the cat"} for _ in range(20) for role in ("user", "assistant")]
    usage = chat(server, [*turns, *USER], max_tokens=4).json["usage"]
    assert BLOCK // 2 < usage["prompt_tokens"] <= BLOCK - 4
    for messages in (
        [{"role": "user", "content": "the cat " * 100}],
        [{"role": "system", "content": "z" * 400}, *USER],
    ):
        openai_error(chat(server, messages), 400, "messages", "context_length_exceeded")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "the cat"}, "messages"),
        ({"messages": [{"content": "the cat"}]}, "messages.0.role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "colour": "red"}]}, "messages.0"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages.0"),
        ({"messages": USER * (Limits.messages + 1)}, "messages"),
        ({"tools": [{"type": "function"}]}, None),
        ({"prompt": "the cat"}, None),
        ({"temprature": 1}, None),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"n": 0}, "n"),
        ({"temperature": 3}, "temperature"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_invalid_chat_is_an_error_in_openais_form(
    server: RunningServer, fields: dict[str, Any], param: str | None
) -> None:
    openai_error(server.post("/v1/chat/completions", **{"model": "small", "messages": USER} | fields), 400, param)


def test_a_template_that_rejects_the_messages_is_their_error(server: RunningServer) -> None:
    assert "roles must alternate" in openai_error(chat(server, model="strict"), 400, "messages")


@pytest.mark.parametrize("request_", OPEN_WEBUI, ids=lambda request: request["what"])
def test_the_requests_of_open_webui_are_answered(server: RunningServer, request_: dict[str, Any]) -> None:
    """As its backend sends them: `backend/open_webui/routers/{openai,tasks}.py`, version 0.6."""
    headers = {"x-openwebui-user-name": "Ann", "x-openwebui-user-role": "user", "authorization": "Bearer none"}
    body = request_["body"] | {"seed": 1}  # without a seed one text in a hundred is empty
    response = server.request("POST", "/v1/chat/completions", body, headers)
    assert response.status == 200, response.body
    if request_["body"]["stream"]:
        *events, last, end = response.events
        assert "".join(event["choices"][0]["delta"]["content"] for event in events)
        assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        assert (last["usage"]["total_tokens"] > 0, end) == (True, "[DONE]")
    else:
        assert response.json["choices"][0]["message"]["content"]


def test_models_are_listed_with_step_and_loss(bpe_run: Run, native_cache: None) -> None:
    model = load_model("run", bpe_run, SETTINGS)
    with run_server({"run": model}) as server:
        [listed] = server.request("GET", "/v1/models").json["data"]
        assert (listed["step"], listed["val_loss"]) == (model.step, model.checkpoint.info["val_loss"])
        assert listed["tokenizer"] == "bpe"
        answer = server.post("/v1/chat/completions", messages=USER, max_tokens=2)  # one model needs no name
        assert answer.json["model"] == "run"


def test_the_api_is_described_at_docs_if_that_is_asked_for(server: RunningServer) -> None:
    assert server.request("GET", "/docs").status == 404
    with run_server({}, docs=True, keys={"a": "key-of-the-server"}) as described:
        page = described.request("GET", "/docs")
        assert page.headers["content-type"].startswith("text/html")
        document = described.app.api.openapi()
    text = page.body.decode()
    for path in document["paths"]:
        assert path in text
    assert "max_completion_tokens" in text
    assert "<script" not in text
    assert "http" not in text.replace("https", "")
