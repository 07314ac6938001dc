"""Fields that completion and chat requests share: their checks, and their form in a `TextRequest`."""

import secrets
from typing import Any

from octavo.generation.prompt import Prompt
from octavo.generation.sampling import Sampling
from octavo.generation.stream import TextRequest, encode_bad_words
from octavo.server.api_error import ApiError
from octavo.server.limits import Limits
from octavo.server.requests import GenerationRequest
from octavo.server.served_model import ServedModel


def check_fields(model: ServedModel, body: GenerationRequest, max_tokens: int) -> None:
    """Raise `ApiError` for shared fields that contradict each other, or have ids that are not in the vocabulary."""
    if body.min_tokens > max_tokens:
        raise ApiError(400, f"min_tokens={body.min_tokens} is more than max_tokens={max_tokens}", param="min_tokens")
    if body.stream_options and body.stream_options.model_fields_set and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options")
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


def shared_fields(model: ServedModel, body: GenerationRequest, cache_scope: str) -> dict[str, Any]:
    """The fields of the `TextRequest`s that do not depend on the prompt. All prompts have the same seed."""
    return dict(
        num_samples=body.n,
        seed=secrets.randbits(62) if body.seed is None else body.seed % 2**63,
        stop_token_ids=frozenset(body.stop_token_ids),
        include_stop_str_in_output=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        bad_words=encode_bad_words(model.checkpoint.tokenizer, body.bad_words),
        sampling=_sampling(body),
        overflow=model.overflow,
        cache_scope=cache_scope,
    )


def _sampling(body: GenerationRequest) -> Sampling:
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


def add_token_ids(choice: dict[str, Any], body: GenerationRequest, ids: list[int], prompt: Prompt | None) -> None:
    """Add the ids to a choice if the request asks for them. `prompt` is None if an earlier event had its ids."""
    if body.return_token_ids:
        choice["token_ids"] = ids
        choice["prompt_token_ids"] = prompt.ids if prompt else None
