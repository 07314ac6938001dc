"""The texts of a batch as OpenAI's JSON: one object, or server-sent events. An endpoint formats its `choices`."""

import abc
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
from octavo.generation.stream import LocatedToken, TextPiece, TextStream
from octavo.server.api_error import ApiError
from octavo.server.disconnect import unless_disconnected
from octavo.server.requests import GenerationRequest
from octavo.server.text_batch import TextBatch

_WRITE_BYTES = 16 << 10  # events that are ready are written together until they are this large
FINISH_REASONS = {"length": "length", "stop": "stop", "end_of_text": "stop"}


class TextResponse(abc.ABC):
    """The response to a request for texts, made of the pieces of its batch."""

    id_prefix: str
    object: str
    chunk_object: str

    def __init__(self, batch: TextBatch, body: GenerationRequest) -> None:
        self._batch, self._body = batch, body
        self._common = {
            "id": f"{self.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": batch.model.id,
            "system_fingerprint": batch.model.checkpoint.folder.name,
        }

    @abc.abstractmethod
    def choice(
        self, index: int, stream: TextStream, piece: TextPiece, prompt_tokens: list[LocatedToken]
    ) -> dict[str, Any]:
        """The item of `choices` for a whole text. `prompt_tokens` are reported with their log-probabilities."""

    @abc.abstractmethod
    def chunk_choice(self, index: int, stream: TextStream, piece: TextPiece, prompt: Prompt | None) -> dict[str, Any]:
        """The item of `choices` for a piece of a text. `prompt` is None unless it is the first piece."""

    async def create(self, http: HTTPRequest) -> Response:
        """The HTTP response. The batch is closed when it ends."""
        if self._body.stream:
            return EventStream(self.events(), self._batch.close)
        try:
            pieces = await unless_disconnected(http, self._batch.complete())
            if pieces is None:
                return Response(status_code=499)
            content = await asyncio.to_thread(self.encode, pieces)  # formatting 100,000 log-probabilities takes a while
            return Response(content, media_type="application/json")
        finally:
            self._batch.close()

    def encode(self, pieces: Mapping[TextStream, TextPiece]) -> bytes:
        """The response as one JSON object; `pieces` has the whole text of each stream."""
        choices: list[dict[str, Any]] = []
        for streams in self._batch.streams:
            # The log-probabilities of a prompt's tokens: only the first of its texts has them.
            prompt_tokens = pieces[streams[0]].prompt_tokens
            for stream in most_likely(streams, self._body.n):
                choices.append(self.choice(len(choices), stream, pieces[stream], prompt_tokens))
        batch = self._batch
        usage = _usage(batch.prompt_tokens, batch.completion_tokens, batch.cached_tokens)
        return orjson.dumps(self._common | {"object": self.object, "choices": choices, "usage": usage})

    async def events(self) -> AsyncIterator[bytes]:
        """The response as server-sent events. Those that are ready come together."""
        ready = b""
        async for event in self._events():
            ready += event
            if len(ready) >= _WRITE_BYTES or self._batch.must_wait:
                yield ready
                ready = b""
                # If the client has reset the connection, the event loop reports it now. asyncio warns of writes before.
                await asyncio.sleep(0)
        if ready:
            yield ready

    async def _events(self) -> AsyncIterator[bytes]:
        """One event for each piece. An error after the first byte is an event too."""
        common = self._common | {"object": self.chunk_object}
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
                choice = self.chunk_choice(indexes[stream], stream, piece, prompt)
                if usage and in_every_event:
                    counts[stream] += len(piece.tokens)
                    # At the end, the tokens of a stop string count too.
                    completion = counts[stream] if piece.finish_reason is None else len(stream.tokens)
                    usage = {"usage": _usage(len(stream.prompt.ids), completion, stream.cached_tokens)}
                yield _event(common | {"choices": [choice]} | usage)
            if usage:
                batch = self._batch
                total = _usage(batch.prompt_tokens, batch.completion_tokens, batch.cached_tokens)
                yield _event(common | {"choices": [], "usage": total})
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield b"data: %s\n\n" % error.content


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
