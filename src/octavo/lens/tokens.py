"""The view `tokens`: a text as the model's tokens; and what all views of a text use to tokenize it.

A token is bytes. Some are part of a character, some a space, some a mark that combines with the character before it;
`label` gives each a visible name. Positions, layers and heads count from 0, as in GPT-2's own names (`h.0`).
"""

import codecs
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo import runs
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.generation.generate import generate
from octavo.lens.view import Table, View
from octavo.runs import RunLike
from octavo.tokenizers import Tokenizer

Text = str | Sequence[int] | None  # a text, its token ids, or None for a text that the model generates
_MAX_TOKENS = 1 << 16  # that the view lists
_MAX_NEW_TOKENS = 48  # that the model generates if no text is given
_WHITESPACE_SYMBOLS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}


@dataclass(frozen=True)
class Token:
    """A token of the vocabulary: its id, a visible name, and its bytes in hexadecimal."""

    id: int
    label: str
    bytes: str


@dataclass(frozen=True)
class Group:
    """The shortest group of tokens that encodes whole characters: `count` tokens from `first` on encode `text`."""

    text: str
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Tokens(View):
    """A text as `tokens`, and the `groups` of tokens that make whole characters. `text` is what all tokens decode to.

    `left_out` is how many tokens at the end were truncated. `generated` is true if the model wrote the text, because
    none was given.
    """

    text: str
    tokens: list[Token]
    groups: list[Group]
    left_out: int
    generated: bool

    def tables(self) -> list[Table]:
        characters = {group.first: label(group.text.encode()) for group in self.groups}  # shown beside the first token
        rows = [
            (position, token.id, token.label, token.bytes, characters.get(position, ""))
            for position, token in enumerate(self.tokens)
        ]
        title = f"{len(rows)} tokens, {len(self.text)} characters"
        return [Table(title, ("position", "id", "token", "bytes", "characters"), rows)]

    @property
    def ids(self) -> Tensor:
        """The token ids (1, T), as the model takes them."""
        return torch.tensor([[token.id for token in self.tokens]])

    @property
    def labels(self) -> list[str]:
        """The visible name of each token."""
        return [token.label for token in self.tokens]


def tokens(run: RunLike, text: Text = None, *, unknown: str = "error") -> Tokens:
    """The tokens of a text, in groups that make whole characters. All bytes, concatenated, are the text's UTF-8."""
    return tokenize(runs.load(run), text, unknown, limit=_MAX_TOKENS)


def tokenize(loaded: Checkpoint, text: Text, unknown: str = "error", limit: int | None = None) -> Tokens:
    """Tokenize a text, or take its token ids unchanged. With None, the model generates a text.

    Truncates the text to `limit` tokens, by default the model's block_size. `unknown` is how to handle characters that
    are not in the tokenizer's vocabulary. Raises `OctavoError` if there are no tokens.
    """
    tokenizer, block_size = loaded.tokenizer, loaded.model.settings.block_size
    generated = text is None
    if text is None:
        text = generate(loaded, "", max_new_tokens=min(_MAX_NEW_TOKENS, block_size)).pop().text
    ids = [int(id) for id in (tokenizer.encode(text, unknown) if isinstance(text, str) else text)]
    if not ids:
        raise OctavoError("there is no text to look at", '--text "The "')
    check_ids(tokenizer, ids)
    kept = ids[: block_size if limit is None else limit]
    groups = group_by_character(tokenizer, kept)
    text = "".join(group.text for group in groups)
    return Tokens(text, [make_token(tokenizer, id) for id in kept], groups, len(ids) - len(kept), generated)


def check_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """Raise `OctavoError` for an id that the tokenizer does not have."""
    if wrong := [id for id in ids if not 0 <= id < tokenizer.vocab_size]:
        raise OctavoError(
            f"there is no token {wrong[0]}: this tokenizer has the ids 0 to {tokenizer.vocab_size - 1}",
            "an id that `tokens` lists",
        )


def group_by_character(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Group]:
    """Split tokens into the shortest groups that end where a character ends."""
    groups, decoder, first, text = [], codecs.getincrementaldecoder("utf-8")(errors="replace"), 0, ""
    for position, id in enumerate(ids):
        text += decoder.decode(tokenizer.token_bytes[id], position == len(ids) - 1)
        if not decoder.getstate()[0]:  # no bytes of an incomplete character are pending
            groups.append(Group(text, first, position + 1 - first))
            first, text = position + 1, ""
    return groups


def make_token(tokenizer: Tokenizer, id: int) -> Token:
    """The token with an id. wte may have more rows than the tokenizer has tokens; the label of such a row is `#ID`."""
    content = tokenizer.token_bytes[id] if id < len(tokenizer.token_bytes) else b""
    return Token(id, label(content) if content else f"#{id}", content.hex(" "))


def label(content: bytes) -> str:
    """A visible name for a token's bytes: whitespace as symbols, combining marks on a circle, invalid UTF-8 as hex."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return f"<{content.hex(' ')}>"
    return "".join(_visible_character(character, i == 0) for i, character in enumerate(text))


def _visible_character(character: str, is_first: bool) -> str:
    category = unicodedata.category(character)
    if category[0] == "M" and is_first:
        return "◌" + character
    if character not in _WHITESPACE_SYMBOLS and (category[0] == "C" or category in ("Zs", "Zl", "Zp")):
        return f"<U+{ord(character):04X}>"
    return _WHITESPACE_SYMBOLS.get(character, character)
