"""`/v1/completions`: OpenAI's request mapped to text requests, and their texts mapped to OpenAI's response."""

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson
from fastapi import Request as HTTPRequest
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from octavo.generation.generate import most_likely
from octavo.generation.prompt import Prompt
from octavo.generation.sampling import Sampling
from octavo.generation.stream import LocatedToken, TextPiece, TextRequest, TextStream
from octavo.server.api_error import ApiError
from octavo.server.disconnect import unless_disconnected
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.requests import CompletionRequest
from octavo.server.text_batch import TextBatch
from octavo.server.tokens import encode_bounded_prompt, format_logprobs
from octavo.server.worker import ServedModel

_FINISH_REASONS = {"length": "length", "stop": "stop", "end_of_text": "stop"}


async def complete(
    model: ServedModel,
    body: CompletionRequest,
    cache_scope: str,
    http: HTTPRequest,
    metrics: Metrics,
    limits: Limits,
) -> Response:
    """Answer a request. Raises `ApiError` if the body asks for too much, or the queue is full."""
    check_request(model, body, limits)
    requests = await asyncio.to_thread(text_requests, model, body, cache_scope)
    batch = TextBatch(model, requests, limits, metrics, incremental=body.stream)
    answer = CompletionAnswer(batch, body)
    if body.stream:
        return EventStream(answer.events(), batch.close)
    try:
        pieces = await unless_disconnected(http, batch.complete())
        if pieces is None:
            return Response(status_code=499)
        content = await asyncio.to_thread(answer.encode, pieces)  # formatting 100,000 log-probabilities takes a while
        return Response(content, media_type="application/json")
    finally:
        batch.close()


def check_request(model: ServedModel, body: CompletionRequest, limits: Limits) -> None:
    """Raise `ApiError` for fields that contradict each other or the model's vocabulary."""
    best_of = body.best_of or body.n
    if best_of < body.n:
        raise ApiError(400, f"best_of={best_of} is less than n={body.n}", param="best_of")
    if best_of > body.n and body.stream:
        raise ApiError(
            400, f"best_of={best_of} cannot be streamed: the best text is known only at the end", param="best_of"
        )
    if best_of * len(body.prompts) > limits.sequences:
        raise ApiError(
            400,
            f"{len(body.prompts)} prompts with {best_of} texts each are more than {limits.sequences}",
            param="n" if body.best_of is None else "best_of",
        )
    vocab_size = model.checkpoint.tokenizer.vocab_size
    if invalid := [id for id in body.logit_bias if int(id) >= vocab_size]:
        raise ApiError(400, f"there is no token {invalid[0]}: this model has {vocab_size} tokens", param="logit_bias")


def text_requests(model: ServedModel, body: CompletionRequest, cache_scope: str) -> list[TextRequest]:
    """One request for each prompt. Every prompt is continued with the same seeds."""
    tokenizer, block_size = model.checkpoint.tokenizer, model.checkpoint.model.settings.block_size
    seed = secrets.randbits(62) if body.seed is None else body.seed % 2**63
    return [
        TextRequest(
            prompt=encode_bounded_prompt(tokenizer, block_size, prompt, body.parse_special),
            max_new_tokens=body.max_tokens,
            num_samples=body.n,
            best_of=body.best_of or 0,
            seed=seed,
            stop=tuple(body.stops),
            sampling=sampling(body),
            overflow=model.overflow,
            logprobs=body.logprobs,
            echo=body.echo,
            cache_scope=cache_scope,
        )
        for prompt in body.prompts
    ]


def sampling(body: CompletionRequest) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_k=max(body.top_k, 0),
        top_p=max(body.top_p, 1e-9),  # OpenAI allows 0, which keeps the most likely token alone
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias={int(id): bias for id, bias in body.logit_bias.items()},
    )


class CompletionAnswer:
    """The pieces of a batch as OpenAI's JSON: one object, or server-sent events."""

    def __init__(self, batch: TextBatch, body: CompletionRequest) -> None:
        self._batch, self._body = batch, body
        self._common = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": batch.model.id,
        }

    def encode(self, pieces: Mapping[TextStream, TextPiece]) -> bytes:
        """The response as one JSON object; `pieces` has the whole text of each stream."""
        choices: list[dict[str, Any]] = []
        for streams in self._batch.streams:
            # The log-probabilities of a prompt's tokens: only the first of its texts has them.
            prompt_tokens = pieces[streams[0]].prompt_tokens
            for stream in most_likely(streams, self._body.n):
                choices.append(self._choice(len(choices), pieces[stream], prompt_tokens, stream.prompt))
        return orjson.dumps(self._common | {"choices": choices, "usage": self._usage()})

    async def events(self) -> AsyncIterator[bytes]:
        """The response as server-sent events. An error after the first byte is an event too."""
        usage = {"usage": None} if self._body.stream_options.include_usage else {}
        indexes = {stream: index for index, stream in enumerate(itertools.chain(*self._batch.streams))}
        started: set[TextStream] = set()
        try:
            async for stream, piece in self._batch.pieces():
                prompt = None if stream in started else stream.prompt
                started.add(stream)
                choice = self._choice(indexes[stream], piece, piece.prompt_tokens, prompt)
                yield _event(self._common | {"choices": [choice]} | usage)
            if usage:
                yield _event(self._common | {"choices": [], "usage": self._usage()})
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield b"data: %s\n\n" % error.content

    def _choice(
        self, index: int, piece: TextPiece, prompt_tokens: list[LocatedToken], prompt: Prompt | None
    ) -> dict[str, Any]:
        """A choice. `prompt` is None if an earlier event had its ids."""
        tokenizer = self._batch.model.checkpoint.tokenizer
        choice: dict[str, Any] = {"text": piece.text, "index": index, "logprobs": None, "finish_reason": None}
        if self._body.logprobs is not None:
            choice["logprobs"] = format_logprobs(tokenizer, prompt_tokens + piece.tokens)
        if piece.finish_reason is not None:
            choice["finish_reason"] = _FINISH_REASONS[piece.finish_reason]
        if self._body.return_token_ids:
            choice["token_ids"] = [token.id for token, _ in piece.tokens]
            choice["prompt_token_ids"] = prompt.ids if prompt else None
        return choice

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self._batch.prompt_tokens, self._batch.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self._batch.cached_tokens},
        }


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % orjson.dumps(value)


class EventStream(StreamingResponse):
    """Server-sent events. `close` is called when the response ends: complete, abandoned, or never started."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()
