"""Clients by others: openai, curl, and schemathesis, which tests the server against its OpenAPI document."""

import asyncio
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import openai
import pytest
import schemathesis
from schemathesis import checks

from octavo.server import load_model
from octavo.server.app import build_app
from octavo.server.limits import Limits
from serving import LIMITS, SETTINGS, RunningServer, run_server, write_checkpoint
from test_docs import Block, parse_blocks

DOCS = Path(__file__).parents[1] / "docs" / "serve.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Iterator[RunningServer]:
    """A model with the name that docs/serve.md uses; the environment has no API keys."""
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "my-1", "bpe:300")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(built.parent))
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OCTAVO_API_KEY"):
            patch.delenv(name, raising=False)
        with run_server({"my-1": load_model("my-1", folder, SETTINGS)}) as running:
            yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


# openai


def test_openai_client_gets_logprobs_and_echo(server: RunningServer, client: openai.OpenAI) -> None:
    completion = client.completions.create(
        model="my-1",
        prompt="the cat",
        n=2,
        best_of=4,
        echo=True,
        logprobs=3,
        seed=1,
        max_tokens=8,
        stop=["zzz"],
        logit_bias={"5": -100},
        presence_penalty=0.5,
        frequency_penalty=0.5,
        top_p=0.9,
        temperature=0.8,
        user="me",
        extra_body={"top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1},
    )
    assert [choice.index for choice in completion.choices] == [0, 1]
    for choice in completion.choices:
        assert choice.text.startswith("the cat")
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.top_logprobs is not None
        assert len(logprobs.tokens) == len(logprobs.text_offset or []) == len(logprobs.token_logprobs or [])
        assert len(logprobs.tokens) == len(logprobs.top_logprobs)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 32
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 32
    assert completion._request_id is not None


def test_openai_client_streams_the_same_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "my-1", "prompt": ["the cat", "a mat"], "seed": 5, "max_tokens": 20}
    completion = client.completions.create(**options)
    texts = {choice.index: "" for choice in completion.choices}
    usage = None
    for chunk in client.completions.create(stream=True, stream_options={"include_usage": True}, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert texts == {choice.index: choice.text for choice in completion.choices}
    assert usage is not None
    assert completion.usage is not None
    assert usage.total_tokens == completion.usage.total_tokens


def test_openai_async_client_sends_concurrent_requests(server: RunningServer, client: openai.OpenAI) -> None:
    alone = [client.completions.create(model="my-1", prompt="the", seed=i).choices[0].text for i in range(8)]

    async def complete(client: openai.AsyncOpenAI, seed: int) -> str:
        if seed % 2:
            return (await client.completions.create(model="my-1", prompt="the", seed=seed)).choices[0].text
        stream = await client.completions.create(model="my-1", prompt="the", seed=seed, stream=True)
        return "".join([choice.text async for chunk in stream for choice in chunk.choices])

    async def complete_concurrently() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(complete(client, seed) for seed in range(8)))

    assert asyncio.run(complete_concurrently()) == alone


def test_openai_client_raises_its_error_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown_model:
        client.completions.create(model="gpt-4", prompt="the")
    assert unknown_model.value.code == "model_not_found"
    assert unknown_model.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="block_size is 64") as long_prompt:
        client.completions.create(model="my-1", prompt=[1] * 65)
    assert long_prompt.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="best_of"):
        client.completions.create(model="my-1", prompt="the", n=3, best_of=2)
    assert [model.id for model in client.models.list()] == ["my-1"]
    assert client.models.retrieve("my-1").object == "model"


def test_openai_clients_chat_with_and_without_streams(server: RunningServer, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "a cat"}, {"role": "user", "content": "the mat"}]
    options: dict[str, Any] = {"model": "my-1", "messages": messages, "seed": 5, "max_completion_tokens": 12}
    answer = client.chat.completions.create(**options, n=2, logprobs=True, top_logprobs=2, stop=["zz"])
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.message.role for choice in answer.choices} == {"assistant"}
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(each.top_logprobs) for each in logprobs.content] == [2] * len(logprobs.content)
    text = answer.choices[0].message.content
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == text
    assert chunks[-1].usage is not None

    async def chat() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(**options)
            stream = await client.chat.completions.create(**options, stream=True)
            parts = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
            return [whole.choices[0].message.content or "", "".join(parts)]

    assert asyncio.run(chat()) == [text, text]
    with pytest.raises(openai.BadRequestError, match="does not fit") as too_long:
        client.chat.completions.create(model="my-1", messages=[{"role": "user", "content": "the cat " * 200}])
    assert too_long.value.code == "context_length_exceeded"


def test_a_stream_that_the_openai_client_closes_frees_its_slots(server: RunningServer, client: openai.OpenAI) -> None:
    with client.completions.create(model="my-1", prompt="the", max_tokens=60, n=8, stream=True) as stream:
        next(iter(stream))
    assert client.completions.create(model="my-1", prompt="the").choices[0].text


# The examples of the guide


def guide_examples(language: str) -> list[Block]:
    return [block for block in parse_blocks(DOCS.read_text(encoding="utf-8")) if block.language == language]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_examples_of_the_guide_work(server: RunningServer) -> None:
    commands = [block.text for block in guide_examples("sh") if block.text.startswith("curl")]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace("\\\n", " ").replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"))
        result = subprocess.run(
            [*words, "-s", "--fail-with-body"], capture_output=True, text=True, timeout=60, check=True
        )
        if "-N" in words:
            assert result.stdout.endswith("data: [DONE]\n\n")
        else:
            [choice] = json.loads(result.stdout)["choices"]
            assert choice["text"] == server.text("The model", max_tokens=20, seed=1)


def test_python_examples_of_the_guide_work(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    blocks_with_requests = [block for block in guide_examples("python") if "127.0.0.1:8000" in block.text]
    assert len(blocks_with_requests) == 3
    for block in blocks_with_requests:
        exec(block.text.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), {})
        assert capsys.readouterr().out.strip()


def test_the_guide_states_the_actual_limits() -> None:
    page = DOCS.read_text(encoding="utf-8")
    limits = Limits()
    for statement in (
        f"`--queue` {SETTINGS.queue}",
        f"{limits.body_bytes >> 20} MiB, in {limits.body_seconds} seconds",
        f"{limits.headers}, {limits.header_bytes >> 10} KiB, in {limits.header_seconds} seconds",
        f"{limits.request_seconds} seconds",
        f"| {limits.connections} |",
        f"{limits.sequences}; `best_of` {limits.best_of}",
        f"`logprobs` up to {limits.logprobs}, up to {limits.stops} `stop` strings",
        f"end the text, up to {limits.stop_token_ids} |",
        f"| up to {limits.bad_words} texts",
        f"| {limits.logprob_values:,} |",
        f"| {limits.concurrent_views}, {limits.queued_views}; beyond",
        f"{limits.lens_characters:,} characters",
    ):
        assert statement in page


# schemathesis


schema = schemathesis.openapi.from_dict(build_app({}, LIMITS).api.openapi())


@schema.parametrize()
@hypothesis.settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_responses_follow_the_openapi_document(server: RunningServer, case: schemathesis.Case) -> None:
    """The response to any request, valid or not, has a status and a schema of the document."""
    excluded = [checks.positive_data_acceptance]  # no schema can state that a prompt is too long for the model
    response = case.call(base_url=server.url)
    if response.status_code == 413:  # schemathesis does not count it as a refusal of invalid data
        excluded.append(checks.negative_data_rejection)
    case.validate_response(response, excluded_checks=excluded)


def test_the_openapi_document_states_errors_and_defaults(server: RunningServer) -> None:
    document = server.request("GET", "/openapi.json").json
    assert document == schema.raw_schema
    operation = document["paths"]["/v1/completions"]["post"]
    assert {"200", "400", "401", "404", "413", "429", "503"} <= operation["responses"].keys()
    assert "422" not in json.dumps(document)
    properties = document["components"]["schemas"]["CompletionRequest"]["properties"]
    assert not re.search("suffix|messages", json.dumps(properties))
    assert {"type": "null"} in properties["n"]["anyOf"]
