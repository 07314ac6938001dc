"""`/v1/completions`: OpenAI's request mapped to text requests, and their texts mapped to OpenAI's response."""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.generation.prompt import Prompt
from octavo.generation.stream import LocatedToken, TextPiece, TextRequest, TextStream
from octavo.server import responses
from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.requests import CompletionRequest
from octavo.server.served_model import ServedModel
from octavo.server.text_batch import TextBatch
from octavo.server.text_requests import add_token_ids, check_fields, check_logprobs, shared_fields
from octavo.server.text_response import FINISH_REASONS, TextResponse
from octavo.server.tokens import encode_bounded_prompt, format_logprobs, format_prompt_logprobs


def routes(find_model: Callable[[str, Request], ServedModel], limits: Limits, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/completions", response_model=responses.Completion, responses=responses.STREAM | responses.errors(404, 500)
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts."""
        model, client = find_model(body.model, request), request.state.client
        check_request(model, body, limits)
        requests = await asyncio.to_thread(build_text_requests, model, body, client.cache_scope)
        check_logprobs(model, requests, limits)
        batch = TextBatch(model, requests, client, limits, metrics, incremental=body.stream)
        return await CompletionResponse(batch, body).create(request)

    return router


def check_request(model: ServedModel, body: CompletionRequest, limits: Limits) -> None:
    """Raise `ApiError` for too many texts, fields that contradict each other, or ids that are not in the vocabulary."""
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
            f"{len(body.prompts)} prompts with {best_of} texts each are more than {limits.sequences} texts",
            param="n" if body.best_of is None else "best_of",
        )
    if body.stream and body.prompt_logprobs is not None:
        raise ApiError(400, "prompt_logprobs are not streamed: leave out stream", param="prompt_logprobs")
    check_fields(model, body, body.max_tokens)


def build_text_requests(model: ServedModel, body: CompletionRequest, cache_scope: str) -> list[TextRequest]:
    """One request for each prompt. Every prompt is continued with the same seeds."""
    tokenizer, block_size = model.checkpoint.tokenizer, model.checkpoint.model.settings.block_size
    keep = body.truncate_prompt_tokens
    if keep == -1:
        keep = max(1, block_size - body.max_tokens)
    shared = shared_fields(model, body, cache_scope)
    return [
        TextRequest(
            prompt=encode_bounded_prompt(tokenizer, block_size, prompt, body.parse_special, keep),
            max_new_tokens=body.max_tokens,
            best_of=body.best_of or 0,
            stop=tuple(body.stops),
            logprobs=body.logprobs,
            prompt_logprobs=body.prompt_logprobs,
            echo=body.echo,
            **shared,
        )
        for prompt in body.prompts
    ]


class CompletionResponse(TextResponse):
    """OpenAI's completion object."""

    id_prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"
    _body: CompletionRequest

    def __init__(self, batch: TextBatch, body: CompletionRequest) -> None:
        super().__init__(batch, body)
        self._tokenizer = batch.model.checkpoint.tokenizer

    def choice(
        self, index: int, stream: TextStream, piece: TextPiece, prompt_tokens: list[LocatedToken]
    ) -> dict[str, Any]:
        choice = self._choice(index, stream, piece, prompt_tokens, stream.prompt)
        if (top := self._body.prompt_logprobs) is not None:
            choice["prompt_logprobs"] = format_prompt_logprobs(self._tokenizer, prompt_tokens, top)
        return choice

    def chunk_choice(self, index: int, stream: TextStream, piece: TextPiece, prompt: Prompt | None) -> dict[str, Any]:
        return self._choice(index, stream, piece, piece.prompt_tokens, prompt)

    def _choice(
        self,
        index: int,
        stream: TextStream,
        piece: TextPiece,
        prompt_tokens: list[LocatedToken],
        prompt: Prompt | None,
    ) -> dict[str, Any]:
        body = self._body
        choice: dict[str, Any] = {
            "text": piece.text,
            "index": index,
            "logprobs": None,
            "finish_reason": None,
            "stop_reason": None,
        }
        if body.logprobs is not None:
            tokens = (prompt_tokens if body.echo else []) + piece.tokens
            as_ids = body.return_tokens_as_token_ids
            choice["logprobs"] = format_logprobs(self._tokenizer, tokens, body.logprobs, as_ids)
        if piece.finish_reason is not None:
            choice["finish_reason"] = FINISH_REASONS[piece.finish_reason]
            choice["stop_reason"] = stream.stop_reason
        add_token_ids(choice, body, [token.id for token, _ in piece.tokens], prompt)
        return choice
