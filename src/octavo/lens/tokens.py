"""What is looked at: a model, and a text as the model reads it.

A token is bytes. Some are half a character, some a space, some a mark that only stands on another; `label` names each
so that it can be seen. Positions, layers and heads are counted from 0, as GPT-2's names do (`h.0`).
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
from octavo.generation.stream import generate
from octavo.lens.view import Table, View
from octavo.settings import ModelSettings
from octavo.tokenizers import Tokenizer

RUN = runs.RunLike  # what every view takes
TEXT = str | Sequence[int] | None  # a text, its ids, or what the model writes itself
_MOST = 1 << 16  # tokens that are listed
_OWN = 48  # tokens that a model writes where no text was given
_SIGNS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}


@dataclass(frozen=True)
class Token:
    """A token of the text: its id, a name for it that can be seen, and its bytes in hex."""

    id: int
    label: str
    bytes: str


@dataclass(frozen=True)
class Group:
    """Tokens that make whole characters together, and can't be shown apart: `count` of them from `first` on."""

    text: str
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Tokens(View):
    """A text as the model reads it: `tokens`, made up to whole characters by `groups`. `text` is all that they are.

    `left_out` tokens at its end didn't fit into the model's block. `own`: the model wrote it, as none was given.
    """

    text: str
    tokens: list[Token]
    groups: list[Group]
    left_out: int
    own: bool

    def tables(self) -> list[Table]:
        rows = [
            (at, token.id, token.label, token.bytes, label(group.text.encode()) if at == group.first else "")
            for group in self.groups
            for at, token in enumerate(self.tokens[group.first : group.first + group.count], group.first)
        ]
        return [
            Table(
                f"{len(rows)} tokens, {len(self.text)} characters",
                ("position", "id", "token", "bytes", "characters"),
                rows,
            )
        ]

    @property
    def ids(self) -> Tensor:
        """The ids (1, T), as a model takes them."""
        return torch.tensor([[token.id for token in self.tokens]])

    @property
    def labels(self) -> list[str]:
        """A name for each token."""
        return [token.label for token in self.tokens]


def load_checkpoint(run: RUN) -> Checkpoint:
    """What a RUN names, loaded, in float32 on a CPU; or what was loaded before."""
    return runs.load(run)


def tokens(run: RUN, text: TEXT = None, *, unknown: str = "error") -> Tokens:
    """A text as tokens, group_by_character by characters. Their bytes, one after the other, are the text's UTF-8."""
    return tokenize(load_checkpoint(run), text, unknown, limit=_MOST)


def tokenize(loaded: Checkpoint, text: TEXT, unknown: str = "error", limit: int | None = 0) -> Tokens:
    """A text, or ids, as the model reads them; what it writes itself, where none is given.

    Of a text longer than `limit`, 0 for the model's block, its beginning. Raises `OctavoError` for one without tokens.
    """
    own = text is None
    if text is None:
        text = generate(loaded, "", max_new_tokens=min(_OWN, loaded.model.settings.block_size)).pop().text
    known = loaded.tokenizer
    ids = [int(id) for id in (known.encode(text, unknown) if isinstance(text, str) else text)]
    if not ids:
        raise OctavoError("there is no text to look at", '--text "The "')
    if strange := [id for id in ids if not 0 <= id < known.vocab_size]:
        raise OctavoError(f"there is no token {strange[0]}: this tokenizer has {known.vocab_size}", "ids from `tokens`")
    limit = loaded.model.settings.block_size if limit == 0 else limit
    kept = ids[:limit]
    groups = group_by_character(known, kept)
    return Tokens(
        "".join(group.text for group in groups),
        [make_token(known, id) for id in kept],
        groups,
        len(ids) - len(kept),
        own,
    )


def group_by_character(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Group]:
    """The fewest tokens at a time that end where a character ends."""
    groups, decoder, first, text = [], codecs.getincrementaldecoder("utf-8")(errors="replace"), 0, ""
    for at, id in enumerate(ids):
        text += decoder.decode(tokenizer.token_bytes[id], at == len(ids) - 1)
        if not decoder.getstate()[0]:
            groups.append(Group(text, first, at + 1 - first))
            first, text = at + 1, ""
    return groups


def make_token(tokenizer: Tokenizer, id: int) -> Token:
    """A token of the vocabulary; a model may have more rows than its tokenizer has tokens."""
    piece = tokenizer.token_bytes[id] if id < len(tokenizer.token_bytes) else b""
    return Token(id, label(piece) if piece else f"#{id}", piece.hex(" "))


def label(piece: bytes) -> str:
    """A token's text where it can be seen: blanks as signs, marks on a circle, what is no text as hex."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return f"<{piece.hex(' ')}>"
    return "".join(_visible(character, at) for at, character in enumerate(text))


def _visible(character: str, at: int) -> str:
    category = unicodedata.category(character)
    if category[0] == "M" and at == 0:
        return "◌" + character
    if character not in _SIGNS and (category[0] == "C" or category in ("Zs", "Zl", "Zp")):
        return f"<U+{ord(character):04X}>"
    return _SIGNS.get(character, character)


def resolve_index(value: int, count: int, name: str, option: str = "") -> int:
    """A number from 0 up, or from the end where negative, held against how many there are."""
    if not -count <= value < count:
        raise OctavoError(f"{name} {value}: the {name}s are 0 to {count - 1}", f"--{option or name} {count - 1}")
    return value % count


def describe_model(settings: ModelSettings) -> str:
    """A model in a line."""
    return (
        f"{settings.n_layer} layers, {settings.n_head} heads, {settings.n_embd} wide, block "
        f"{settings.block_size}, vocabulary {settings.vocab_size:,}"
    )
