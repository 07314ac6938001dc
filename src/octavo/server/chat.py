"""`/v1/chat/completions`: OpenAI's request mapped to one text request, and its texts mapped to OpenAI's response.

`octavo.generation.chat` turns the conversation into a prompt.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.errors import UnknownCharactersError
from octavo.generation.chat import ChatFormat, ChatTemplateError, ConversationTooLongError, Message
from octavo.generation.prompt import Prompt
from octavo.generation.stream import LocatedToken, TextPiece, TextRequest, TextStream
from octavo.server import responses
from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.requests import ChatRequest
from octavo.server.served_model import ServedModel
from octavo.server.text_batch import TextBatch
from octavo.server.text_requests import add_token_ids, check_fields, check_logprobs, shared_fields
from octavo.server.text_response import FINISH_REASONS, TextResponse
from octavo.server.tokens import format_chat_logprobs

_ANSWER_SHARE = 1 / 4  # of the context: at least this much is left for the answer, unless max_tokens is less


def routes(find_model: Callable[[str, Request], ServedModel], limits: Limits, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        response_model=responses.ChatCompletion,
        responses=responses.STREAM | responses.errors(404, 500),
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer the newest message of a conversation."""
        model, client = find_model(body.model, request), request.state.client
        _check_request(body)
        text_request = await asyncio.to_thread(build_text_request, model, body, client.cache_scope)
        check_logprobs(model, [text_request], limits)
        batch = TextBatch(model, [text_request], client, limits, metrics, incremental=body.stream)
        return await ChatResponse(batch, body).create(request)

    return router


def _check_request(body: ChatRequest) -> None:
    """Raise `ApiError` for fields that contradict each other."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise ApiError(
            400, "max_tokens and max_completion_tokens are two names of one field, and differ", param="max_tokens"
        )


def build_text_request(model: ServedModel, body: ChatRequest, cache_scope: str) -> TextRequest:
    block_size = model.checkpoint.model.settings.block_size
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if max_tokens is None:
        max_tokens = max(block_size, body.min_tokens)
    check_fields(model, body, max_tokens)
    format = ChatFormat(model.checkpoint.tokenizer, model.chat_template)
    messages = [Message(message.role, message.text) for message in body.messages]
    prompt_limit = max(1, block_size - min(max_tokens, int(block_size * _ANSWER_SHARE)))
    try:
        prompt = format.encode(messages, prompt_limit)
    except ConversationTooLongError as error:
        raise ApiError(400, error.message, param="messages", code="context_length_exceeded") from None
    except (ChatTemplateError, UnknownCharactersError) as error:
        raise ApiError(400, error.message, param="messages") from None
    return TextRequest(
        prompt=prompt,
        max_new_tokens=max_tokens,
        stop=(*body.stops, *format.stop),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **shared_fields(model, body, cache_scope),
    )


class ChatResponse(TextResponse):
    """OpenAI's chat completion object."""

    id_prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, batch: TextBatch, body: ChatRequest) -> None:
        super().__init__(batch, body)
        self._top = (body.top_logprobs or 0) if body.logprobs else None

    def choice(
        self, index: int, stream: TextStream, piece: TextPiece, prompt_tokens: list[LocatedToken]
    ) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return self._choice(index, {"message": message}, stream, piece, stream.prompt)

    def chunk_choice(self, index: int, stream: TextStream, piece: TextPiece, prompt: Prompt | None) -> dict[str, Any]:
        delta = {"role": "assistant"} if prompt else {}
        return self._choice(index, {"delta": delta | {"content": piece.text}}, stream, piece, prompt)

    def _choice(
        self, index: int, text: dict[str, Any], stream: TextStream, piece: TextPiece, prompt: Prompt | None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, **text, "logprobs": None, "finish_reason": None, "stop_reason": None}
        if self._top is not None:
            tokenizer = self._batch.model.checkpoint.tokenizer
            choice["logprobs"] = format_chat_logprobs(tokenizer, piece.tokens, self._top)
        if piece.finish_reason is not None:
            choice["finish_reason"] = FINISH_REASONS[piece.finish_reason]
            choice["stop_reason"] = stream.stop_reason
        add_token_ids(choice, self._body, [token.id for token, _ in piece.tokens], prompt)
        return choice
