"""One text as it is written: tokens in, pieces of text out as they become certain, with what else was asked for."""

import time
from collections.abc import Callable
from typing import NamedTuple

from octavo.generation.engine import Request, Token
from octavo.generation.stream import Writer
from octavo.server.metrics import Metrics
from octavo.server.protocol import CompletionRequest
from octavo.server.tokens import Prompt, Shown, located
from octavo.server.worker import Served, Task


class Piece(NamedTuple):
    """What a candidate has written since its last piece. The last one has a finish reason."""

    candidate: int
    text: str
    tokens: list[Shown]
    finish_reason: str | None


class Candidate(Task):
    """One text. Lives in the engine's thread, but for its pieces."""

    def __init__(self, index: int, request: Request, served: Served, body: CompletionRequest, prompt: Prompt,
                 metrics: Metrics, say: Callable[[Piece], None]) -> None:  # fmt: skip
        super().__init__(request)
        self.index, self.prompt = index, prompt
        self._served, self._body, self._metrics, self._say = served, body, metrics, say
        self._tokenizer = served.loaded.tokenizer
        self._writer = Writer(self._tokenizer, body.stop)
        self._read = self._tokenizer.decoder(errors="ignore")  # the writer's text, before any of it is held back
        self._written = self._certain = len(prompt.text)  # characters read from tokens; of those, shown
        self._pending: list[Shown] = []
        self._text = ""
        self._ready: list[Shown] = []
        self._begun = False
        self._last = time.perf_counter()  # when there was a token last, or first the request

    def deliver(self, token: Token | None) -> None:
        """Take a token, or the end. Pieces of a stream go out as they are certain, all else at the end."""
        reason, first = None, not self._begun
        if first:
            self._begin()
        if token is None:
            whole = self.job is not None and self.job.finish_reason == "end_of_text"
            text, reason = self._writer.finish(whole), self._finish_reason()
        else:
            last, self._last = self._last, time.perf_counter()
            self._metrics.wrote(self._served.id, self._last - last, first)
            text = self._writer.push(token.id)
            if self._body.logprobs is not None or self._body.return_token_ids:
                self._pending.append(Shown(token, self._written))
                self._written += len(self._read.push(token.id))
            if self._writer.stopped:
                self.cancel(self._served.worker.engine)
        self._certain += len(text)
        self._text += text
        # A token belongs to the text if it begins before the text's end; at the end nothing more can cut it off.
        ended = reason is not None and not self._writer.stopped
        count = sum(1 for shown in self._pending if ended or shown.offset < self._certain)
        self._ready += self._pending[:count]
        del self._pending[:count]
        if reason is not None or (self._body.stream and self._text):
            self._say(Piece(self.index, self._text, self._ready, reason))
            self._text, self._ready = "", []

    def mean_logprob(self) -> float:
        """How likely the text is, by which `best_of` chooses. A text without tokens is chosen last."""
        tokens = self.job.tokens if self.job else []
        return sum(token.logprob or 0.0 for token in tokens) / len(tokens) if tokens else float("-inf")

    def _begin(self) -> None:
        self._begun = True
        if self._body.echo:
            self._text = self.prompt.text
            if self.job is not None and self.prompt.echo:
                self._ready = located(self._tokenizer, self.job.prompt_tokens)

    def _finish_reason(self) -> str:
        if self._writer.stopped:
            return "stop"
        if self.job is None or self.failed:
            return "error"
        reasons = {"length": "length", "end_of_text": "stop"}
        return reasons.get(self.job.finish_reason or "", "error")
