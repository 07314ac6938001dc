"""The texts of one HTTP request: submitted together to a model's worker, awaited in the event loop.

An endpoint maps its body to `TextRequest`s, and the pieces of text to its own JSON; this module does the rest. A
streamed and a complete response are both made from the pieces of a `TextStream`, so both have the same text and
log-probabilities.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Sequence

from octavo.errors import NoTokenLeftError, OctavoError
from octavo.generation.stream import TextPiece, TextRequest, TextStream, text_streams
from octavo.server.api_error import ApiError
from octavo.server.client import Client
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.served_model import ServedModel

_MAX_PIECES = 256  # in the queue of a batch, until its texts end


class TextBatch:
    """The texts of several `TextRequest`s to one model. `streams[i]` are the texts of request i.

    Raises `QueueFullError` or `EngineFailedError` if they cannot be queued. The caller must `close` the batch.
    """

    def __init__(
        self,
        model: ServedModel,
        requests: Sequence[TextRequest],
        client: Client,
        limits: Limits,
        metrics: Metrics,
        *,
        incremental: bool,
    ) -> None:
        """`incremental`: pieces arrive as the texts are generated, rather than each text as one piece at its end."""
        self.model, self._client = model, client
        self._limits, self._metrics, self._incremental = limits, metrics, incremental
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[TextStream, TextPiece]] = asyncio.Queue()
        tokenizer = model.checkpoint.tokenizer
        self.streams = [
            text_streams(request, tokenizer, incremental=incremental, on_update=self._on_update) for request in requests
        ]
        self._all_streams = [stream for streams in self.streams for stream in streams]
        self._unfinished = len(self._all_streams)  # texts whose last piece has not been taken
        self._timers = {stream: metrics.token_timer(model.id) for stream in self._all_streams}
        model.worker.submit(self._all_streams)

    async def pieces(self) -> AsyncIterator[tuple[TextStream, TextPiece]]:
        """All pieces as they arrive, each with its stream.

        Raises `ApiError` if a text fails, or if the batch takes longer than `request_seconds`.
        """
        deadline = self._loop.time() + self._limits.request_seconds
        while self._unfinished:
            try:
                async with asyncio.timeout_at(deadline):
                    stream, piece = await self._pieces.get()
            except TimeoutError:
                raise ApiError(
                    503,
                    f"the response was not complete after {self._limits.request_seconds:g} seconds",
                    code="timeout",
                    headers={"x-should-retry": "false"},
                ) from None
            self._unfinished -= piece.finish_reason is not None
            if piece.finish_reason in ("error", "cancelled"):
                raise _text_error(stream.error)
            yield stream, piece

    @property
    def must_wait(self) -> bool:
        """Whether the next piece has not arrived yet."""
        return self._unfinished > 0 and self._pieces.empty()

    async def complete(self) -> dict[TextStream, TextPiece]:
        """Wait for all texts, and return each as one piece. Not for an incremental batch."""
        return {stream: piece async for stream, piece in self.pieces()}

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counts once, however many texts continue it."""
        return sum(len(streams[0].prompt.ids) for streams in self.streams)

    @property
    def cached_tokens(self) -> int:
        """How many of the prompt tokens came from the prefix cache."""
        return sum(streams[0].cached_tokens for streams in self.streams)

    @property
    def completion_tokens(self) -> int:
        """The tokens of all texts, returned or not."""
        return sum(len(stream.tokens) for stream in self._all_streams)

    def close(self) -> None:
        """Cancel the texts that are not complete, and count the tokens."""
        for stream in self._all_streams:
            if stream.finish_reason is None:
                stream.cancel()
        self._metrics.count_prompts(self.model.id, self.prompt_tokens, self.cached_tokens)
        self._client.count_tokens(self.prompt_tokens, self.completion_tokens)

    def _on_update(self, stream: TextStream) -> None:
        """Called in the worker's thread after each token, and at the end of a text."""
        if stream.finish_reason is None:
            self._timers[stream].count_token()
        # A client that reads slowly gets fewer and longer pieces: the stream keeps what is not taken.
        takes_pieces = self._incremental and self._pieces.qsize() < _MAX_PIECES
        if stream.finish_reason is not None or (takes_pieces and stream.has_new_text):
            put = functools.partial(self._pieces.put_nowait, (stream, stream.take()))
            self.model.worker.post(self._loop, put)


def _text_error(error: OctavoError | None) -> ApiError:
    if isinstance(error, NoTokenLeftError):  # the request excludes every token
        return ApiError(400, error.message, hint=error.hint)
    return ApiError(500, error.message if error else "the text was cancelled")
