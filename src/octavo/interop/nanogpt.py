"""nanoGPT's `meta.pkl`: which id each character has. Pickled, so read without letting it name anything to be run."""

import pickle
from pathlib import Path
from typing import Any, NoReturn

from octavo import tokenizers
from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer


class _Unpickler(pickle.Unpickler):
    """Numbers, text, lists and dicts: all that a `meta.pkl` holds needs no name of anything."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and a meta.pkl asks for nothing")


def tokenizer(path: Path) -> Tokenizer:
    """The char tokenizer of a `meta.pkl`. Raises `OctavoError` where it holds anything else."""
    try:
        with open(path, "rb") as file:
            meta: Any = _Unpickler(file).load()
        ids: dict[str, int] = meta["stoi"]
        if not ids:
            raise ValueError("it has no characters")
        if not all(isinstance(character, str) and len(character) == 1 for character in ids):
            raise ValueError("its stoi has other keys than characters")
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"the ids of its {len(ids)} characters are not 0, 1, 2 and so on")
    except Exception as error:  # damaged pickles raise nearly anything
        raise OctavoError(f"{path} is not a meta.pkl of nanoGPT's characters: {error}",
                          "the text itself: octavo train input.txt") from None  # fmt: skip
    return tokenizers.from_characters(ids)
