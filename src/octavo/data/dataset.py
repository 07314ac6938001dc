"""A prepared folder, opened: token shards, a tokenizer, and `dataset.json`, which says what they are.

    train-00000.npy ... val-00000.npy ...   ids, uint16, or uint32 where the vocabulary needs it
    tokenizer.json ...                      the tokenizer, as every checkpoint carries it
    dataset.json                            source, sizes, split, fingerprint; written last

nanoGPT's folders (`train.bin`, `val.bin`, perhaps `meta.pkl`) are opened where they lie.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octavo import files, tokenizers
from octavo.data import shards
from octavo.data.shards import Shard, Shards
from octavo.errors import OctavoError
from octavo.interop import nanogpt
from octavo.tokenizers import Tokenizer

FORMAT = 2
SPLITS = ("train", "val")
_ORIGIN = ("name", "source", "text", "tokenizer", "split", "fingerprint", "cache_key")


@dataclass(frozen=True)
class Dataset:
    """A prepared folder, opened."""

    folder: Path
    tokenizer: Tokenizer
    info: dict[str, Any]  # dataset.json
    shards: dict[str, list[Shard]] = field(repr=False)  # of each split

    @property
    def name(self) -> str:
        """The corpus's, after which a run is called."""
        return str(self.info["name"])

    @property
    def origin(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, so that it is found or made again."""
        return {key: self.info[key] for key in _ORIGIN}

    @property
    def fingerprint(self) -> str:
        """Of the text, its split and the tokenizer: two datasets that share it have the same tokens."""
        return str(self.info["fingerprint"])

    def tokens(self, split: str) -> Shards:
        """The ids of a split, "train" or "val", as one row; mapped into memory, not read."""
        return Shards(self.shards[split])


def is_prepared(source: str | Path) -> bool:
    """Whether a source is a folder of tokens, ours or nanoGPT's. (pathlib would raise where a name is too long.)"""
    return os.path.isfile(Path(source) / "dataset.json") or _is_nanogpts(source)


def open_dataset(folder: Path) -> Dataset:
    """A folder that `prepare` made, held against what its `dataset.json` says; or one of nanoGPT's."""
    if _is_nanogpts(folder) and not os.path.isfile(folder / "dataset.json"):
        return _nanogpts(folder)
    try:
        info = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        if info.get("format", FORMAT) != FORMAT:
            raise ValueError(f"it has the format {info['format']}, and this Octavo reads {FORMAT}")
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in info["files"].items()}
        vocab_size = int(info["vocab_size"])
        for key in (*_ORIGIN, "tokens"):
            info[key]
        named = {split: [folder / name for name in info["shards"][split]] for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OctavoError(f"{folder} is not a prepared folder: {error}", f"octavo prepare ... --out {folder}") from None
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or files.sha256(path) != digest:
            raise OctavoError(f"{path} is not the file that was prepared: it is missing or changed",
                              "prepare the text again")  # fmt: skip
    there = {split: [shards.npy(path) for path in paths] for split, paths in named.items()}
    tokenizer = tokenizers.load(folder)
    if vocab_size != tokenizer.vocab_size:
        raise OctavoError(f"{folder}'s dataset.json tells of {vocab_size} tokens, and its tokenizer has "
                          f"{tokenizer.vocab_size}", "prepare the text again")  # fmt: skip
    _check_ids(there, vocab_size)
    return Dataset(folder, tokenizer, info, there)


def _check_ids(there: dict[str, list[Shard]], vocab_size: int) -> None:
    for split, found in there.items():
        if not found:
            raise OctavoError(f"there are no tokens in the split {split}", "prepare the text again")
        for shard in found:
            if (largest := Shards([shard]).max()) >= vocab_size:
                raise OctavoError(f"{shard.path} has id {largest}, beyond the vocabulary of {vocab_size}",
                                  "prepare the text again")  # fmt: skip


def _is_nanogpts(source: str | Path) -> bool:
    return all(os.path.isfile(Path(source) / f"{split}.bin") for split in SPLITS)


def _nanogpts(folder: Path) -> Dataset:
    """What nanoGPT's prepare.py leaves: ids of 16 bits, by characters where there is a `meta.pkl`, else GPT-2's."""
    tokenizer = (
        nanogpt.tokenizer(folder / "meta.pkl") if (folder / "meta.pkl").exists() else tokenizers.build("gpt2", "")
    )
    there, described = {}, {}
    for split in SPLITS:
        path = folder / f"{split}.bin"
        size = path.stat().st_size
        if size % 2 or size < 4:
            raise OctavoError(f"{path} has {size:,} bytes: it holds no two ids of 16 bits, or was cut short",
                              "prepare it again with nanoGPT, or give the text itself")  # fmt: skip
        there[split] = [Shard(path, np.dtype("<u2"), 0, size // 2)]
        described[path.name] = {"bytes": size, "sha256": files.sha256(path)}
    _check_ids(there, tokenizer.vocab_size)
    text = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    fingerprint = hashlib.sha256(f"{text} {tokenizer.fingerprint}".encode()).hexdigest()
    info = {
        "format": FORMAT,
        "name": folder.resolve().name or "nanogpt",
        "source": str(folder),
        "text": {"sha256": text, "documents": 1},
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "split": {"by": "nanoGPT"},
        "tokens": {split: there[split][0].length for split in SPLITS},
        "fingerprint": fingerprint,
        "cache_key": fingerprint[:24],
        "shards": {split: [f"{split}.bin"] for split in SPLITS},
        "files": described,
    }
    return Dataset(folder, tokenizer, info, there)
