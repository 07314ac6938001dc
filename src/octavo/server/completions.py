"""`/v1/completions`: a body becomes tasks for the engine, and what they write becomes an answer or a stream.

A request's candidates are its prompts times `best_of`. Each writes its text piece by piece, in the engine's thread;
the event loop gets the pieces and either sends them on or joins them. A stream and an answer are so the same text, with
the same log-probabilities.
"""

import asyncio
import functools
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import torch
from fastapi import Request as HTTPRequest
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from octavo.generation.engine import Request
from octavo.generation.sampling import Sampling
from octavo.server.candidate import Candidate, Piece
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.protocol import ApiError, CompletionRequest
from octavo.server.tokens import Prompt, Shown, logprobs, read
from octavo.server.worker import Served

T = TypeVar("T")


class Completion:
    """One request's candidates, and the pieces that they write."""

    def __init__(self, served: Served, body: CompletionRequest, prompts: list[Prompt], share: str,
                 metrics: Metrics, limits: Limits) -> None:  # fmt: skip
        self.served, self.body, self.limits = served, body, limits
        self._metrics = metrics
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
                      "model": served.id}  # fmt: skip
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._best_of = body.best_of or body.n
        seed = secrets.randbits(62) if body.seed is None else body.seed
        self.candidates = [
            Candidate(
                prompt_number * self._best_of + i,
                self._request(prompt, seed + i, share, first=i == 0),
                served, body, prompt, metrics, self._say,
            )
            for prompt_number, prompt in enumerate(prompts)
            for i in range(self._best_of)
        ]  # fmt: skip
        served.worker.submit(self.candidates)

    def _request(self, prompt: Prompt, seed: int, share: str, first: bool) -> Request:
        body = self.body
        logprobs = body.logprobs if body.logprobs is not None or self._best_of == body.n else 0
        tokenizer = self.served.loaded.tokenizer
        return Request(
            prompt=prompt.ids, max_new_tokens=body.max_tokens, sampling=sampling(body),
            generator=torch.Generator().manual_seed(seed % 2**63), overflow=self.served.overflow, logprobs=logprobs,
            # One candidate of an answer tells the prompt's log-probabilities for all; a stream can't wait for it.
            echo=body.echo and body.logprobs is not None and bool(prompt.echo) and (first or body.stream),
            stop_ids=tokenizer.special_ids, cache_scope=share,
        )  # fmt: skip

    def _say(self, piece: Piece) -> None:
        self.served.worker.say(self._loop, functools.partial(self._pieces.put_nowait, piece))

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all candidates as they come. Raises `ApiError` where one fails or all take too long."""
        left = len(self.candidates)
        deadline = self._loop.time() + self.limits.request_seconds
        while left:
            try:
                async with asyncio.timeout_at(deadline):
                    piece = await self._pieces.get()
            except TimeoutError:
                seconds = f"{self.limits.request_seconds:g} seconds"
                raise ApiError(503, f"the answer was not whole after {seconds}", code="timeout",
                              headers={"x-should-retry": "false"}) from None  # fmt: skip
            left -= piece.finish_reason is not None
            if piece.finish_reason == "error":
                raise self._error(self.candidates[piece.candidate])
            yield piece

    def close(self) -> None:
        """Free the slots of what is still under way, and count what was read."""
        for candidate in self.candidates:
            if candidate.job is None or candidate.job.finish_reason is None:
                candidate.cancel(self.served.worker.engine)
        for first in self.candidates[:: self._best_of]:
            self._metrics.read(self.served.id, len(first.prompt.ids), first.job.cached_tokens if first.job else 0)

    async def answer(self) -> bytes:
        """The whole answer, as JSON."""
        texts = [""] * len(self.candidates)
        tokens: list[list[Shown]] = [[] for _ in self.candidates]
        reasons = [""] * len(self.candidates)
        async for piece in self.pieces():
            texts[piece.candidate] += piece.text
            tokens[piece.candidate] += piece.tokens
            reasons[piece.candidate] = piece.finish_reason or ""
        # In a thread: a hundred thousand log-probabilities take a second, in which streams would stand still.
        return await asyncio.to_thread(self._whole, texts, tokens, reasons)

    def _whole(self, texts: list[str], tokens: list[list[Shown]], reasons: list[str]) -> bytes:
        choices: list[dict[str, Any]] = []
        for at in range(0, len(self.candidates), self._best_of):
            echoed = [shown for shown in tokens[at] if shown.offset < len(self.candidates[at].prompt.text)]
            for chosen in self._chosen(at):
                told = tokens[chosen] if chosen == at else echoed + tokens[chosen]
                choices.append(self._choice(len(choices), texts[chosen], told, reasons[chosen]))
                if self.body.return_token_ids:
                    choices[-1] |= self._ids(chosen, tokens[chosen])
        return _json(self._head | {"choices": choices, "usage": self.usage()})

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events. What goes wrong after the first byte is an event too."""
        usage = {"usage": None} if self.body.stream_options.include_usage else {}
        begun: set[int] = set()
        try:
            async for piece in self.pieces():
                choice = self._choice(piece.candidate, piece.text, piece.tokens, piece.finish_reason)
                if self.body.return_token_ids:
                    choice |= self._ids(piece.candidate, piece.tokens, told=piece.candidate in begun)
                    begun.add(piece.candidate)
                yield _event(self._head | {"choices": [choice]} | usage)
            if usage:
                yield _event(self._head | {"choices": [], "usage": self.usage()})
            yield b"data: [DONE]\n\n"
        except ApiError as refused:
            yield _event(refused.body)

    def usage(self) -> dict[str, Any]:
        """Tokens: of each prompt once, and of all that was written, chosen or not."""
        firsts = self.candidates[:: self._best_of]
        prompt = sum(len(first.prompt.ids) for first in firsts)
        written = sum(len(each.job.tokens) for each in self.candidates if each.job)
        cached = sum(first.job.cached_tokens for first in firsts if first.job)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
                "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip

    def _chosen(self, at: int) -> list[int]:
        """The `n` candidates of a prompt that are answered: all of them in order, or the likeliest first."""
        several = list(range(at, at + self._best_of))
        if self._best_of > self.body.n:
            several.sort(key=lambda each: -self.candidates[each].mean_logprob())
        return several[: self.body.n]

    def _choice(self, index: int, text: str, tokens: list[Shown], reason: str | None) -> dict[str, Any]:
        told = None if self.body.logprobs is None else logprobs(self.served.loaded.tokenizer, tokens)
        return {"text": text, "index": index, "logprobs": told, "finish_reason": reason}

    def _ids(self, at: int, tokens: list[Shown], told: bool = False) -> dict[str, Any]:
        """A candidate's ids: of its text, and, unless they were told before, of its prompt."""
        prompt = self.candidates[at].prompt
        written = [token.id for token, offset in tokens if offset >= len(prompt.text)]
        return {"token_ids": written, "prompt_token_ids": None if told else prompt.ids}

    def _error(self, candidate: Candidate) -> ApiError:
        error = candidate.job.error if candidate.job else None
        return ApiError(500, error.message if error else "the model failed; its server has the traceback")


class EventStream(StreamingResponse):
    """A stream whose candidates end with it, however it ends: never begun, read to its end or left."""

    def __init__(self, completion: Completion) -> None:
        super().__init__(completion.chunks(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._completion.close()


async def complete(served: Served, body: CompletionRequest, share: str, http: HTTPRequest, metrics: Metrics,
                   limits: Limits) -> Response:  # fmt: skip
    """Answer a request. Raises `ApiError` for what the body asks too much of, and where the queue is full."""
    check(served, body)
    tokenizer, block_size = served.loaded.tokenizer, served.loaded.model.settings.block_size
    prompts = await asyncio.to_thread(lambda: [read(tokenizer, block_size, prompt) for prompt in body.prompt])
    completion = Completion(served, body, prompts, share, metrics, limits)
    if body.stream:
        return EventStream(completion)
    try:
        answer = await unless_gone(http, asyncio.ensure_future(completion.answer()))
        return Response(answer, 499 if answer is None else 200, media_type="application/json")
    finally:
        completion.close()


async def unless_gone(http: HTTPRequest, answer: asyncio.Future[T]) -> T | None:
    """An answer; or None where the client leaves first, and then it is cancelled."""
    gone = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        answer.cancel()
        gone.cancel()


def check(served: Served, body: CompletionRequest) -> None:
    """Raise `ApiError` for numbers that don't go together."""
    best_of = body.best_of or body.n
    if best_of < body.n:
        raise ApiError(400, f"best_of={best_of} is less than n={body.n}", param="best_of")
    if best_of > body.n and body.stream:
        raise ApiError(400, f"best_of={best_of} can't be streamed: the best is known at the end", param="best_of")
    if best_of * len(body.prompt) > Limits.sequences:
        raise ApiError(400, f"{len(body.prompt)} prompts with {best_of} texts each are more than {Limits.sequences}",
                      param="n" if body.best_of is None else "best_of")  # fmt: skip
    known = served.loaded.tokenizer.vocab_size
    if strange := [id for id in body.logit_bias if id >= known]:
        raise ApiError(400, f"there is no token {strange[0]}: this model has {known}", param="logit_bias")


def sampling(body: CompletionRequest) -> Sampling:
    """How the engine is to draw."""
    return Sampling(
        temperature=body.temperature,
        top_k=max(body.top_k, 0),
        top_p=max(body.top_p, 1e-9),  # OpenAI's goes down to 0: the likeliest token alone
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
    )


async def _disconnected(http: HTTPRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % _json(value)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
