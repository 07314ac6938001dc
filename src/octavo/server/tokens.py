"""Prompts, token strings and log-probabilities in the API's form."""

from typing import Any

from octavo.errors import OctavoError
from octavo.generation.prompt import Prompt, encode_prompt
from octavo.generation.stream import LocatedToken
from octavo.server.api_error import ApiError
from octavo.tokenizers import Tokenizer


def encode_bounded_prompt(
    tokenizer: Tokenizer, block_size: int, prompt: str | list[int], parse_special: bool
) -> Prompt:
    """Encode a prompt, which must fit into the context. One that is far too long is rejected before it is encoded."""
    if isinstance(prompt, str):
        if len(prompt) > block_size * max(map(len, tokenizer.token_bytes)):
            raise _context_length_error(f"more than {block_size:,}", block_size)
    elif len(prompt) > block_size:
        raise _context_length_error(f"{len(prompt):,}", block_size)
    encoded = resolve_text(tokenizer, prompt, "prompt", parse_special)
    if len(encoded.ids) > block_size:
        raise _context_length_error(f"{len(encoded.ids):,}", block_size)
    return encoded


def _context_length_error(tokens: str, block_size: int) -> ApiError:
    return ApiError(
        400,
        f"the prompt has {tokens} tokens; this model's block_size is {block_size:,}",
        param="prompt",
        code="context_length_exceeded",
    )


def resolve_text(tokenizer: Tokenizer, value: str | list[int], param: str, parse_special: bool = False) -> Prompt:
    """The text and the token ids of a request's field, whose value is either a text or token ids.

    Raises `ApiError` for characters and ids that the tokenizer does not have.
    """
    try:
        return encode_prompt(tokenizer, value, special_tokens=parse_special)
    except OctavoError as error:  # without its hint, which names an option of the command line
        raise ApiError(400, error.message, param=param) from None


def format_logprobs(tokenizer: Tokenizer, tokens: list[LocatedToken]) -> dict[str, Any]:
    """The `logprobs` object of a completion. All numbers are rounded the same way, because clients compare them."""
    lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token, offset in tokens:
        lists["tokens"].append(token_string(tokenizer, token.id))
        lists["text_offset"].append(offset)
        if token.logprob is None:
            lists["token_logprobs"].append(None)
            lists["top_logprobs"].append(None)
            continue
        lists["token_logprobs"].append(round(token.logprob, 6))
        top: dict[str, float] = {}
        for id, logprob in (*token.top, (token.id, token.logprob)):
            top.setdefault(token_string(tokenizer, id), round(logprob, 6))
        lists["top_logprobs"].append(top)
    return lists


def token_string(tokenizer: Tokenizer, id: int) -> str:
    """A token's text. Bytes that are not UTF-8 are written as OpenAI does, `bytes:\\xff`: U+FFFD would hide them."""
    token = tokenizer.token_bytes[id]
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
