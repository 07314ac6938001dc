"""Open the folders that nanoGPT's prepare.py scripts write: `train.bin`, `val.bin`, and `meta.pkl` if the tokens are
characters.

The files are used in place. A pickle could run code when it is loaded; this reader accepts only plain data.
"""

import hashlib
import json
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from octavo import schema, tokenizers
from octavo.data.file_state import FileProperties
from octavo.data.shards import Shard, Shards
from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer

_SPLITS = ("train", "val")


def is_nanogpt_folder(source: str | Path) -> bool:
    return all(os.path.isfile(Path(source) / f"{split}.bin") for split in _SPLITS)


def open_tokens(folder: Path) -> dict[str, Shards]:
    """The ids of both splits, 16 bits each."""
    opened = {}
    for split in _SPLITS:
        path = folder / f"{split}.bin"
        size = path.stat().st_size
        if size % 2 or size < 4:
            raise OctavoError(
                f"{path} has {size:,} bytes: expected at least two ids of 16 bits",
                "prepare it again with nanoGPT, or give the text itself",
            )
        opened[split] = Shards([Shard(path, np.dtype("<u2"), 0, size // 2)])
    return opened


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder: the characters in `meta.pkl`, or GPT-2's if there is no such file."""
    path = folder / "meta.pkl"
    return _char_tokenizer(path) if path.exists() else tokenizers.build("gpt2", "")


def describe(
    folder: Path, tokenizer: Tokenizer, tokens: dict[str, Shards], properties: FileProperties
) -> dict[str, Any]:
    """The contents that `dataset.json` would have."""
    entries = {
        f"{split}.bin": {"bytes": 2 * len(tokens[split]), "sha256": properties.sha256(f"{split}.bin")}
        for split in _SPLITS
    }
    files_sha256 = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    fingerprint = hashlib.sha256(f"{files_sha256} {tokenizer.fingerprint}".encode()).hexdigest()
    return {
        "name": folder.resolve().name or "nanogpt",
        "source": str(folder),
        "text": {"sha256": files_sha256, "documents": 1},
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "split": {"by": "nanoGPT"},
        "tokens": {split: len(tokens[split]) for split in _SPLITS},
        "fingerprint": fingerprint,
        "cache_key": fingerprint[:24],
        "shards": {split: [f"{split}.bin"] for split in _SPLITS},
        "files": entries,
    }


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
            raise pickle.UnpicklingError(f"it has the opcode {opcode.name}, which plain data does not need")
        # The unpickler allocates memory up to the index at which a value is stored.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(str(argument)) <= len(content):
            raise pickle.UnpicklingError(f"it stores value {argument}, and has only {len(content)} bytes")
    return pickle.loads(content)


def _char_tokenizer(path: Path) -> Tokenizer:
    content = schema.read_regular_file(path, _META_HINT, _MAX_META_BYTES)
    try:
        ids: dict[str, int] = _load_plain_data(content)["stoi"]
        if not ids:
            raise ValueError("it has no characters")
        if not all(isinstance(character, str) and len(character) == 1 for character in ids):
            raise ValueError("its stoi has keys that are not characters")
        if any("\ud800" <= character <= "\udfff" for character in ids):
            raise ValueError("its stoi has unpaired surrogates, which are not characters")
        if not all(type(id) is int for id in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"the ids of its {len(ids)} characters are not 0, 1, 2 and so on")
    except Exception as error:  # a damaged pickle can raise nearly any exception
        reason = str(error) or type(error).__name__
        raise OctavoError(
            f"{path} is not the meta.pkl of a character-level nanoGPT dataset: {reason}", _META_HINT
        ) from None
    return tokenizers.from_characters(ids)
