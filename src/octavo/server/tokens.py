"""Between text and token ids, as the API has both: prompts in, tokens' spellings, places and log-probabilities out."""

from typing import Any, NamedTuple

from octavo.errors import OctavoError
from octavo.generation.engine import Token
from octavo.generation.stream import start
from octavo.server.protocol import ApiError
from octavo.tokenizers import Tokenizer


class Prompt(NamedTuple):
    """What a text begins with. `echo` is what the client gave of it: nothing, where the start was left to us."""

    ids: list[int]
    text: str
    echo: list[int]


class Shown(NamedTuple):
    """A token with the place in prompt and completion, in characters, where its text begins."""

    token: Token
    offset: int


def read(tokenizer: Tokenizer, block_size: int, prompt: str | list[int]) -> Prompt:
    """A prompt's ids. Raises `ApiError` where it doesn't fit the model or its tokenizer."""
    if isinstance(prompt, str):
        if len(prompt) > block_size * max(map(len, tokenizer.token_bytes)):  # so long that it needn't be looked at
            raise too_long(f"more than {block_size:,}", block_size)
        ids = encode(tokenizer, prompt) if prompt else start(tokenizer, "")
        made = Prompt(ids, prompt, ids if prompt else [])
    else:
        checked(tokenizer, prompt)
        made = Prompt(prompt, tokenizer.decode(prompt[:block_size]), prompt)
    if len(made.ids) > block_size:
        raise too_long(f"{len(made.ids):,}", block_size)
    return made


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text. Raises `ApiError` where it has characters that the tokenizer doesn't know."""
    try:
        return [int(id) for id in tokenizer.encode(text)]
    except OctavoError as error:
        raise ApiError(400, error.message, param="prompt") from None


def checked(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Raise `ApiError` for ids that stand for no token."""
    known = tokenizer.vocab_size
    if strange := next((str(id) for id in ids if not 0 <= id < known), None):
        raise ApiError(400, f"there is no token {strange[:20]}: this model has {known}", param="prompt")


def too_long(tokens: str, block_size: int) -> ApiError:
    """OpenAI's answer to a prompt that doesn't fit."""
    return ApiError(400, f"the prompt has {tokens} tokens; this model's block_size is {block_size:,}",
                   param="prompt", code="context_length_exceeded")  # fmt: skip


def located(tokenizer: Tokenizer, tokens: list[Token]) -> list[Shown]:
    """A prompt's tokens, each with its place."""
    decoder, at, shown = tokenizer.decoder(), 0, []
    for token in tokens:
        shown.append(Shown(token, at))
        at += len(decoder.push(token.id))
    return shown


def logprobs(tokenizer: Tokenizer, tokens: list[Shown]) -> dict[str, Any]:
    """OpenAI's first shape for them. Rounded alike in both places, since clients compare the two."""
    lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token, offset in tokens:
        known = token.logprob is not None
        lists["tokens"].append(spelled(tokenizer, token.id))
        lists["token_logprobs"].append(round(token.logprob, 6) if token.logprob is not None else None)
        lists["text_offset"].append(offset)
        top: dict[str, float] = {}
        for id, logprob in (*token.top, (token.id, token.logprob)) if known else ():
            assert logprob is not None
            top.setdefault(spelled(tokenizer, id), round(logprob, 6))
        lists["top_logprobs"].append(top if known else None)
    return lists


def spelled(tokenizer: Tokenizer, id: int) -> str:
    """A token's text. Bytes that are no text are spelled as OpenAI did, `bytes:\\xff`: else many would look alike."""
    token = tokenizer.token_bytes[id]
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
