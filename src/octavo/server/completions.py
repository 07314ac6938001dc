"""`/v1/completions`: OpenAI's request mapped to text requests, and their texts mapped to OpenAI's response."""

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson
from fastapi import Request as HTTPRequest
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from octavo.generation.generate import most_likely
from octavo.generation.prompt import Prompt
from octavo.generation.sampling import Sampling
from octavo.generation.stream import LocatedToken, TextPiece, TextRequest, TextStream, encode_bad_words
from octavo.server.api_error import ApiError
from octavo.server.disconnect import unless_disconnected
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.requests import CompletionRequest
from octavo.server.text_batch import TextBatch
from octavo.server.tokens import encode_bounded_prompt, format_logprobs, format_prompt_logprobs
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
    check_logprobs(model, requests, limits)
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
    if body.min_tokens > body.max_tokens:
        raise ApiError(
            400, f"min_tokens={body.min_tokens} is more than max_tokens={body.max_tokens}", param="min_tokens"
        )
    if body.stream and body.prompt_logprobs is not None:
        raise ApiError(400, "prompt_logprobs are not streamed: leave out stream", param="prompt_logprobs")
    if body.stream_options and body.stream_options.model_fields_set and not body.stream:
        raise ApiError(400, "stream_options need stream: true", param="stream_options")
    vocab_size = model.checkpoint.tokenizer.vocab_size
    for param, ids in (
        ("logit_bias", [int(id) for id in body.logit_bias]),
        ("stop_token_ids", body.stop_token_ids),
        ("allowed_token_ids", body.allowed_token_ids or []),
    ):
        if invalid := [id for id in ids if id >= vocab_size]:
            raise ApiError(400, f"there is no token {invalid[0]}: this model has {vocab_size} tokens", param=param)


def check_logprobs(model: ServedModel, requests: list[TextRequest], limits: Limits) -> None:
    """Raise `ApiError` if the response could have too many log-probabilities."""
    values = 0
    for request in requests:
        prompt_tokens, new_tokens = len(request.prompt.ids), request.max_new_tokens
        if request.overflow == "stop":
            new_tokens = min(new_tokens, model.checkpoint.model.settings.block_size)
        for tokens, top in ((prompt_tokens, request.reported_prompt_logprobs), (new_tokens, request.logprobs)):
            values += 0 if top is None else request.num_generated * tokens * (top + 1)
    if values > limits.logprob_values:
        raise ApiError(
            400,
            f"the response could have {values:,} log-probabilities; at most {limits.logprob_values:,} are allowed",
            param="logprobs",
            hint="fewer prompts, texts, max_tokens or logprobs",
        )


def text_requests(model: ServedModel, body: CompletionRequest, cache_scope: str) -> list[TextRequest]:
    """One request for each prompt. Every prompt is continued with the same seeds."""
    tokenizer, block_size = model.checkpoint.tokenizer, model.checkpoint.model.settings.block_size
    seed = secrets.randbits(62) if body.seed is None else body.seed % 2**63
    settings, bad_words = sampling(body), encode_bad_words(tokenizer, body.bad_words)
    keep = body.truncate_prompt_tokens
    if keep == -1:
        keep = max(1, block_size - body.max_tokens)
    return [
        TextRequest(
            prompt=encode_bounded_prompt(tokenizer, block_size, prompt, body.parse_special, keep),
            max_new_tokens=body.max_tokens,
            num_samples=body.n,
            best_of=body.best_of or 0,
            seed=seed,
            stop=tuple(body.stops),
            stop_token_ids=frozenset(body.stop_token_ids),
            include_stop_str_in_output=body.include_stop_str_in_output,
            ignore_eos=body.ignore_eos,
            min_tokens=body.min_tokens,
            bad_words=bad_words,
            sampling=settings,
            overflow=model.overflow,
            logprobs=body.logprobs,
            prompt_logprobs=body.prompt_logprobs,
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
        allowed_token_ids=body.allowed_token_ids,
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
            "system_fingerprint": batch.model.checkpoint.folder.name,
        }

    def encode(self, pieces: Mapping[TextStream, TextPiece]) -> bytes:
        """The response as one JSON object; `pieces` has the whole text of each stream."""
        choices: list[dict[str, Any]] = []
        tokenizer = self._batch.model.checkpoint.tokenizer
        for streams in self._batch.streams:
            # The log-probabilities of a prompt's tokens: only the first of its texts has them.
            prompt_tokens = pieces[streams[0]].prompt_tokens
            for stream in most_likely(streams, self._body.n):
                choice = self._choice(len(choices), stream, pieces[stream], prompt_tokens, stream.prompt)
                if (top := self._body.prompt_logprobs) is not None:
                    choice["prompt_logprobs"] = format_prompt_logprobs(tokenizer, prompt_tokens, top)
                choices.append(choice)
        batch = self._batch
        usage = _usage(batch.prompt_tokens, batch.completion_tokens, batch.cached_tokens)
        return orjson.dumps(self._common | {"choices": choices, "usage": usage})

    async def events(self) -> AsyncIterator[bytes]:
        """The response as server-sent events. An error after the first byte is an event too."""
        options = self._body.stream_options
        usage: dict[str, Any] = {"usage": None} if options is not None and options.include_usage else {}
        in_every_event = options is not None and options.continuous_usage_stats
        indexes = {stream: index for index, stream in enumerate(itertools.chain(*self._batch.streams))}
        counts: Counter[TextStream] = Counter()  # tokens of each text in the events so far
        started: set[TextStream] = set()
        try:
            async for stream, piece in self._batch.pieces():
                prompt = None if stream in started else stream.prompt
                started.add(stream)
                choice = self._choice(indexes[stream], stream, piece, piece.prompt_tokens, prompt)
                if usage and in_every_event:
                    counts[stream] += len(piece.tokens)
                    # At the end, the tokens of a stop string count too.
                    completion = counts[stream] if piece.finish_reason is None else len(stream.tokens)
                    usage = {"usage": _usage(len(stream.prompt.ids), completion, stream.cached_tokens)}
                yield _event(self._common | {"choices": [choice]} | usage)
            if usage:
                batch = self._batch
                total = _usage(batch.prompt_tokens, batch.completion_tokens, batch.cached_tokens)
                yield _event(self._common | {"choices": [], "usage": total})
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield b"data: %s\n\n" % error.content

    def _choice(
        self,
        index: int,
        stream: TextStream,
        piece: TextPiece,
        prompt_tokens: list[LocatedToken],
        prompt: Prompt | None,
    ) -> dict[str, Any]:
        """A choice. `prompt` is None if an earlier event had its ids."""
        body, tokenizer = self._body, self._batch.model.checkpoint.tokenizer
        choice: dict[str, Any] = {
            "text": piece.text,
            "index": index,
            "logprobs": None,
            "finish_reason": None,
            "stop_reason": None,
        }
        if body.logprobs is not None:
            tokens = (prompt_tokens if body.echo else []) + piece.tokens
            choice["logprobs"] = format_logprobs(tokenizer, tokens, body.logprobs, body.return_tokens_as_token_ids)
        if piece.finish_reason is not None:
            choice["finish_reason"] = _FINISH_REASONS[piece.finish_reason]
            choice["stop_reason"] = stream.stop_reason
        if body.return_token_ids:
            choice["token_ids"] = [token.id for token, _ in piece.tokens]
            choice["prompt_token_ids"] = prompt.ids if prompt else None
        return choice


def _usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
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
