"""Which tokenizers can be encoded by faster code than the `tokenizers` library: a table of what that code implements.

The table lists the keys of `tokenizer.json`, and the values with which the fast code returns the library's ids. Any
other key or value switches the fast code off, and the library encodes. So does an added token that is not special,
because the library looks for it in every text.
"""

import json
from typing import TYPE_CHECKING, Any

from octavo.tokenizers.bytelevel import LETTER_TO_BYTE, letters_to_bytes

if TYPE_CHECKING:
    import tokenizers

WORD_PATTERN = r"[\p{L}\p{M}\p{N}_]+|\s+|[^\p{L}\p{M}\p{N}_\s]"

_ANY = object()  # the fast code reads the key, or it changes no ids
_BPE: dict[str, tuple[Any, ...]] = {
    "version": (_ANY,),
    "truncation": (None,),
    "padding": (None,),
    "added_tokens": (_ANY,),  # but see `implements`
    "normalizer": (None,),
    "post_processor": (_ANY,),  # adds special tokens, which `Tokenizer.encode` leaves out
    "decoder": (_ANY,),  # `Tokenizer.decode` concatenates bytes
    "model.type": ("BPE",),
    "model.vocab": (_ANY,),
    "model.merges": (_ANY,),
    "model.dropout": (None, 0.0),
    "model.unk_token": (_ANY,),  # `Tokenizer.encode` finds unknown characters before it encodes
    "model.fuse_unk": (_ANY,),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
    "model.byte_fallback": (False,),
}
_CHARACTERS = _BPE | {"pre_tokenizer": (None,), "model.merges": ([],), "model.ignore_merges": (_ANY,)}
_TIKTOKEN = _BPE | {
    "pre_tokenizer.type": ("ByteLevel",),
    "pre_tokenizer.add_prefix_space": (False,),
    "pre_tokenizer.trim_offsets": (_ANY,),
    "pre_tokenizer.use_regex": (True,),
    "model.ignore_merges": (False,),
}
_BYTES = _TIKTOKEN | {"model.merges": ([],)}
_WORDS = _BPE | {
    "pre_tokenizer.type": ("Sequence",),
    "pre_tokenizer.pretokenizers": (
        [
            {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    ),
    "model.merges": ([],),
    "model.ignore_merges": (True,),
}
TABLE = {
    "char": _CHARACTERS,  # NumPy looks up code points
    "byte": _BYTES,  # the bytes are the ids
    "word": _WORDS,  # the library, but on chunks of the text, or on words that are cached
    "bpe": _TIKTOKEN,
    "gpt2": _TIKTOKEN,
}


def implements(kind: str, description: dict[str, Any]) -> bool:
    """Whether the fast code for a kind of tokenizer implements all of a `tokenizer.json`."""
    if not all(token["special"] for token in description["added_tokens"]):
        return False
    return all(_is_allowed(key, value, TABLE[kind]) for key, value in description.items())


def _is_allowed(key: str, value: Any, table: dict[str, tuple[Any, ...]]) -> bool:
    if key in table:
        return any(allowed is _ANY or allowed == value for allowed in table[key])
    return isinstance(value, dict) and all(_is_allowed(f"{key}.{name}", inner, table) for name, inner in value.items())


def mergeable_ranks(backend: "tokenizers.Tokenizer") -> dict[bytes, int] | None:
    """The token ranks from which tiktoken encodes like the backend; None if it would encode differently.

    `tokenizers` merges by a list of pairs, the first pair first. tiktoken merges any pair whose concatenation is a
    token, the lowest id first. Both give the same ids if these conditions hold, which they do after BPE training:

    - The ids follow the order of the list, and a pair consists of bytes and results of earlier merges. So both apply
      merges in the order of the ids.
    - The library encodes each token alone as that token. So after all earlier merges its bytes are its pair in the
      list, and tiktoken, which does the same merges, has no other pair to merge.
    """
    description = json.loads(backend.to_str())
    model = description["model"]
    added = {token["content"] for token in description["added_tokens"]}
    ids = {token: id for token, id in model["vocab"].items() if token not in added}
    merged = [left + right for left, right in model["merges"]]
    if not LETTER_TO_BYTE.keys() <= ids.keys():
        return None
    if merged != sorted(ids.keys() - LETTER_TO_BYTE.keys(), key=ids.__getitem__):
        return None
    earlier = set(LETTER_TO_BYTE)
    for (left, right), token in zip(model["merges"], merged, strict=True):
        if left not in earlier or right not in earlier:
            return None
        earlier.add(token)
    if any(len(backend.model.tokenize(token)) != 1 for token in merged):
        return None
    return {letters_to_bytes(token): id for token, id in ids.items()}
