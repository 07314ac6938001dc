"""nanoGPT's meta.pkl: the characters of a dataset and their ids. A pickle, of which only plain data is read.

Octavo's own has `<|endoftext|>` after the characters, and `start_of_text`, which nanoGPT ignores.
"""

import pickle
import pickletools
from pathlib import Path
from typing import Any

from octavo import schema, tokenizers
from octavo.errors import OctavoError
from octavo.tokenizers import END_OF_TEXT, Tokenizer

# The opcodes of numbers, strings, lists and dicts. None imports or calls anything. Tuples are left out too: a deeply
# nested one is a valid key of a dict, and computing its hash overflows the stack of the process.
_PLAIN_OPCODES = """
PROTO FRAME STOP MARK EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS NONE NEWTRUE NEWFALSE INT BININT
BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE PUT
BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
"""
_MAX_META_BYTES = 4 << 20  # 150,000 characters, all that Unicode has assigned, take 3 MB
_META_HINT = "the text itself: octavo train input.txt"


def _load_plain_data(content: bytes) -> Any:
    """Unpickle numbers, strings, lists and dicts. Raises an exception, nearly any, if there is anything else."""
    plain = set(_PLAIN_OPCODES.split())
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in plain:
            raise pickle.UnpicklingError(f"it has the opcode {opcode.name}, which plain data does not use")
        # The unpickler allocates memory up to the index at which a value is stored.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(str(argument)) <= len(content):
            raise pickle.UnpicklingError(f"it stores value {argument}, and has only {len(content)} bytes")
    return pickle.loads(content)


def load_tokenizer(path: Path) -> Tokenizer:
    """The char tokenizer of a meta.pkl. Raises `OctavoError` if it is anything else."""
    content = schema.read_regular_file(path, _META_HINT, _MAX_META_BYTES)
    try:
        meta = _load_plain_data(content)
        ids: dict[str, int] = dict(meta["stoi"])
        if not all(type(id) is int for id in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"the ids of its {len(ids)} characters are not 0, 1, 2 and so on")
        has_end_of_text = ids.get(END_OF_TEXT) == len(ids) - 1
        if has_end_of_text:
            del ids[END_OF_TEXT]
        if not ids:
            raise ValueError("it has no characters")
        if not all(isinstance(character, str) and len(character) == 1 for character in ids):
            raise ValueError("its stoi has keys that are not characters")
        if any("\ud800" <= character <= "\udfff" for character in ids):
            raise ValueError("its stoi has unpaired surrogates, which are not characters")
        start = meta.get("start_of_text")
        if not isinstance(start, str | None):
            raise ValueError("its start_of_text is not a text")
        return tokenizers.from_characters(ids, has_end_of_text, start)
    except Exception as error:  # a damaged pickle can raise nearly any exception
        reason = str(error) or type(error).__name__
        raise OctavoError(
            f"{path} is not the meta.pkl of a character-level nanoGPT dataset: {reason}", _META_HINT
        ) from None


def write(path: Path, tokenizer: Tokenizer) -> None:
    """Write the meta.pkl of a char tokenizer."""
    tokens = [token.decode() for token in tokenizer.token_bytes]
    ids = {token: id for id, token in enumerate(tokens)}
    meta = {"vocab_size": len(ids), "stoi": ids, "itos": dict(enumerate(tokens))}
    if tokenizer.start_of_text is not None:
        meta["start_of_text"] = tokenizer.start_of_text
    path.write_bytes(pickle.dumps(meta))
