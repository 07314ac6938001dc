"""Prompts, token strings and log-probabilities in the API's form."""

from typing import Any

from octavo.errors import OctavoError
from octavo.generation.prompt import Prompt, encode_prompt
from octavo.generation.stream import LocatedToken
from octavo.server.api_error import ApiError
from octavo.tokenizers import Tokenizer


def encode_bounded_prompt(
    tokenizer: Tokenizer, block_size: int, prompt: str | list[int], parse_special: bool, keep: int | None = None
) -> Prompt:
    """Encode a prompt and keep its last `keep` tokens (None: all), which must fit into the context.

    One that is far too long is rejected before it is encoded.
    """
    if keep is None and isinstance(prompt, str):
        if len(prompt) > block_size * max(map(len, tokenizer.token_bytes)):
            raise _context_length_error(f"more than {block_size:,}", block_size)
    elif keep is None and len(prompt) > block_size:
        raise _context_length_error(f"{len(prompt):,}", block_size)
    encoded = resolve_text(tokenizer, prompt, "prompt", parse_special)
    if keep is not None and len(encoded.ids) > keep:
        encoded = encode_prompt(tokenizer, encoded.ids[len(encoded.ids) - keep :])
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


def format_logprobs(
    tokenizer: Tokenizer, tokens: list[LocatedToken], count: int, as_ids: bool = False
) -> dict[str, Any]:
    """The `logprobs` object of a completion, with the `count` most likely tokens at each position.

    With `as_ids`, a token is written as `token_id:5`. All numbers are rounded the same way, because clients compare
    them.
    """
    lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def string(id: int) -> str:
        return f"token_id:{id}" if as_ids else token_string(tokenizer, id)

    for token, offset in tokens:
        lists["tokens"].append(string(token.id))
        lists["text_offset"].append(offset)
        if token.logprob is None:
            lists["token_logprobs"].append(None)
            lists["top_logprobs"].append(None)
            continue
        lists["token_logprobs"].append(round(token.logprob, 6))
        top: dict[str, float] = {}
        for id, logprob in (*token.top[:count], (token.id, token.logprob)):
            top.setdefault(string(id), round(logprob, 6))
        lists["top_logprobs"].append(top)
    return lists


def format_chat_logprobs(tokenizer: Tokenizer, tokens: list[LocatedToken], count: int) -> dict[str, Any]:
    """The `logprobs` object of a chat completion, with the `count` most likely tokens at each position."""

    def describe(id: int, logprob: float | None) -> dict[str, Any]:
        token = tokenizer.token_bytes[id]
        return {"token": token_string(tokenizer, id), "logprob": round(logprob or 0.0, 6), "bytes": list(token)}

    content = [
        describe(token.id, token.logprob) | {"top_logprobs": [describe(*pair) for pair in token.top[:count]]}
        for token, _ in tokens
    ]
    return {"content": content, "refusal": None}


def format_prompt_logprobs(
    tokenizer: Tokenizer, tokens: list[LocatedToken], count: int
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's `prompt_logprobs`: for each position of the prompt its token and the `count` most likely ones, by id."""
    positions: list[dict[str, dict[str, Any]] | None] = []
    for token, _ in tokens:
        if token.logprob is None:  # the first token
            positions.append(None)
            continue
        ranked = {id: (rank, logprob) for rank, (id, logprob) in enumerate(token.top[:count], start=1)}
        ranked.setdefault(token.id, (token.rank or 0, token.logprob))
        positions.append(
            {
                str(id): {"logprob": round(logprob, 6), "rank": rank, "decoded_token": token_string(tokenizer, id)}
                for id, (rank, logprob) in ranked.items()
            }
        )
    return positions


def token_string(tokenizer: Tokenizer, id: int) -> str:
    """A token's text. Bytes that are not UTF-8 are written as OpenAI does, `bytes:\\xff`: U+FFFD would hide them."""
    token = tokenizer.token_bytes[id]
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
