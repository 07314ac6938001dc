"""Resolve arguments that several views take: an index, a token, a word; and describe a model."""

from collections.abc import Sequence

from octavo.errors import OctavoError, UnknownCharactersError
from octavo.lens.tokens import check_ids, make_token
from octavo.settings import ModelSettings
from octavo.tokenizers import Tokenizer

TokenLike = str | int  # a token's text, or its id
WordLike = str | int | Sequence[int]  # a word's text, or the ids of its tokens
_MAX_WORD_TOKENS = 16
WITH_SPACE = "one token with a space before it"  # a note


def resolve_index(value: int, count: int, name: str, option: str = "") -> int:
    """An index from 0 to `count - 1`; a negative one counts from the end. Raises `OctavoError` outside that range.

    The hint of the error suggests `--NAME N`, or `--OPTION N` if `option` is given.
    """
    if not -count <= value < count:
        raise OctavoError(f"{name} {value}: the {name}s are 0 to {count - 1}", f"--{option or name} {count - 1}")
    return value % count


def resolve_token(tokenizer: Tokenizer, token: TokenLike) -> int:
    """The id of a token. An id is returned unchanged. Raises `OctavoError` for a text that is not exactly one token."""
    if not isinstance(token, str):
        check_ids(tokenizer, [token])
        return token
    ids = [int(id) for id in tokenizer.encode(token)]
    if not ids:
        raise OctavoError("an empty text is not a token", "a token's text or id, as `octavo inspect RUN tokens` shows")
    if len(ids) > 1:
        labels = " ".join(make_token(tokenizer, id).label for id in ids)
        raise OctavoError(f"{token!r} is {len(ids)} tokens for this tokenizer: {labels}", "one of these tokens")
    return ids[0]


def resolve_word(tokenizer: Tokenizer, word: WordLike) -> tuple[list[int], str]:
    """The ids of a word's tokens, and a note that views show after the word; it is empty if the word is one token.

    Ids are returned unchanged. If a word is one token only with a space before it, the space is added.
    """
    if not isinstance(word, str):
        ids = [word] if isinstance(word, int) else list(word)
        check_ids(tokenizer, ids)
    else:
        try:
            ids = [int(id) for id in tokenizer.encode(word)]
        except UnknownCharactersError as error:
            raise UnknownCharactersError(error.message, "a word of known characters") from None
    if not ids:
        raise OctavoError("an empty word has no token", "--word king")
    if len(ids) == 1:
        return ids, ""
    if (with_space := token_with_space(tokenizer, word)) is not None:
        return [with_space], WITH_SPACE
    if len(ids) > _MAX_WORD_TOKENS:
        raise OctavoError(f"{word!r} is {len(ids)} tokens; at most {_MAX_WORD_TOKENS} are shown", "a shorter word")
    labels = " ".join(make_token(tokenizer, id).label for id in ids)
    return ids, f"{len(ids)} tokens, {labels}: wte has no row for the whole word"


def token_with_space(tokenizer: Tokenizer, word: WordLike) -> int | None:
    """The id of a word with a space before it. None if it is not one token, or the word is given by ids."""
    if not isinstance(word, str) or tokenizer.kind not in ("bpe", "gpt2"):
        return None
    ids = tokenizer.encode(f" {word}")
    return int(ids[0]) if len(ids) == 1 else None


def text_of(tokenizer: Tokenizer, word: WordLike) -> str:
    """The text of a word that may be given by ids."""
    if isinstance(word, str):
        return word
    return tokenizer.decode([word] if isinstance(word, int) else list(word))


def describe_model(settings: ModelSettings) -> str:
    """A model's shape in one line."""
    return (
        f"{settings.n_layer} layers, {settings.n_head} heads, width {settings.n_embd}, context length "
        f"{settings.block_size}, vocabulary {settings.vocab_size:,}"
    )
