"""Open the folders that nanoGPT's prepare.py writes: `train.bin`, `val.bin`, and for characters `meta.pkl`.

The files are used in place. A pickle could run code when it is loaded; this reader accepts only plain data.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from octavo import tokenizers
from octavo.data.file_state import FileProperties
from octavo.data.shards import Shard, Shards
from octavo.errors import OctavoError
from octavo.interop import meta_pkl
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
    return meta_pkl.load_tokenizer(path) if path.exists() else tokenizers.build("gpt2", "")


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
