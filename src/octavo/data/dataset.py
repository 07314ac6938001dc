"""A prepared dataset: a folder with token shards, a tokenizer, and `dataset.json`, which describes them.

    train-00000.npy ... val-00000.npy ...   ids, uint16, or uint32 if the vocabulary needs it
    tokenizer.json ...                      the tokenizer, as in a checkpoint
    dataset.json                            source, sizes, split, fingerprint, and sha256 of each file; written last

Opening a dataset reads no shards, unless they changed since they were last verified. `open_dataset` opens nanoGPT's
folders too.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from octavo import remote, schema, tokenizers
from octavo.data import nanogpt
from octavo.data.file_state import FileProperties
from octavo.data.shards import Shards, open_npy
from octavo.errors import OctavoError
from octavo.schema import Count, FileName
from octavo.settings import Source
from octavo.tokenizers import Tokenizer

FORMAT = 2
SPLITS = ("train", "val")
_ORIGIN_KEYS = ("name", "source", "text", "tokenizer", "split", "fingerprint", "cache_key")


@dataclass(frozen=True)
class Dataset:
    """An opened dataset."""

    folder: Path
    tokenizer: Tokenizer
    info: dict[str, Any]  # dataset.json
    tokens: dict[str, Shards] = field(repr=False)  # the ids of each split, "train" and "val", on disk

    @property
    def name(self) -> str:
        """The name of the corpus, after which runs are named."""
        return str(self.info["name"])

    @property
    def origin(self) -> dict[str, Any]:
        """What a checkpoint stores, so that `reopen_dataset` can find or rebuild the dataset."""
        return {key: self.info[key] for key in _ORIGIN_KEYS}

    @property
    def fingerprint(self) -> str:
        """Hash of the text, the split and the tokenizer. Two datasets with the same fingerprint have the same ids."""
        return str(self.info["fingerprint"])


def is_prepared(source: Source | Path) -> bool:
    """Whether a source is a prepared dataset, Octavo's or nanoGPT's, or the URL of one that Octavo has prepared."""
    if isinstance(source, tuple):
        return False
    if remote.is_url(source):
        return "*" not in str(source) and remote.Storage(str(source)).exists("dataset.json")
    # os.path, because pathlib raises if a name is too long
    return os.path.isfile(Path(source) / "dataset.json") or nanogpt.is_nanogpt_folder(source)


def open_dataset(source: Source | Path, verify: bool = False) -> Dataset:
    """Open a prepared dataset. Raises `OctavoError` that names the file if one is missing or was changed.

    If the source is a URL, its files are copied into the cache, those that are new or have changed.

    A file is trusted if its size and modification time are those that it had when its sha256 was last verified; if
    not, or with `verify`, it is read and verified.
    """
    assert not isinstance(source, tuple)
    folder = remote.fetch(source) if isinstance(source, str) and remote.is_url(source) else Path(source)
    properties = FileProperties(folder, reread=verify)
    if nanogpt.is_nanogpt_folder(folder) and not os.path.isfile(folder / "dataset.json"):
        tokens, tokenizer = nanogpt.open_tokens(folder), nanogpt.load_tokenizer(folder)
        info = {"format": FORMAT} | nanogpt.describe(folder, tokenizer, tokens, properties)
    else:
        info = read_info(folder)
        _check_files(folder, info, properties)
        tokens = {split: Shards([open_npy(folder / name) for name in info["shards"][split]]) for split in SPLITS}
        tokenizer = tokenizers.load(folder)
        if info["vocab_size"] != tokenizer.vocab_size:
            raise OctavoError(
                f"{folder}: dataset.json has vocab_size={info['vocab_size']}, and the tokenizer has "
                f"{tokenizer.vocab_size} tokens",
                "prepare the text again",
            )
    for split in SPLITS:
        length = len(tokens[split])
        if length == 0 or length != info["tokens"][split]:
            raise OctavoError(
                f"{folder}: the split {split} has {length} tokens, and {info['tokens'][split]} are recorded",
                "prepare the text again",
            )
        for shard in tokens[split].shards:
            largest = properties.largest_id(shard)
            if largest >= tokenizer.vocab_size:
                raise OctavoError(
                    f"{shard.path} has id {largest}, beyond the vocabulary of {tokenizer.vocab_size}",
                    "prepare the text again",
                )
    properties.save()
    return Dataset(folder, tokenizer, info, tokens)


def checksum(info: dict[str, Any]) -> str:
    """The sha256 of the contents of `dataset.json`, which records it as `checksum`."""
    content = {key: value for key, value in info.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class TextInfo(msgspec.Struct):
    """The text that a dataset was prepared from."""

    sha256: str
    documents: Count = 1
    bytes: Count | None = None
    characters: Count | None = None
    left_out: Count | None = None  # documents


class Origin(msgspec.Struct):
    """What a checkpoint stores of its dataset, see `Dataset.origin`."""

    name: FileName
    source: str | list[str]
    text: TextInfo
    tokenizer: str
    split: dict[str, str | float]
    fingerprint: str
    cache_key: FileName

    @classmethod
    def check(cls, value: object) -> "Origin":
        """Convert what a checkpoint stores. Raises `OctavoError` if a key is missing or its value has another type."""
        hint = "another checkpoint, or octavo eval RUN SOURCE, which does not need the record"
        return schema.check(value, cls, "the checkpoint's record of its data", hint)


class _FileEntry(msgspec.Struct):
    """What `dataset.json` records about a file."""

    bytes: Count
    sha256: str


class _DatasetInfo(Origin):
    """The contents of `dataset.json`."""

    vocab_size: Count
    tokens: dict[Literal["train", "val"], Count]
    shards: dict[Literal["train", "val"], list[FileName]]
    files: dict[FileName, _FileEntry]
    format: int = FORMAT
    checksum: str = ""  # folders of earlier versions have none


def read_info(folder: Path) -> dict[str, Any]:
    """The contents of `dataset.json`. Raises `OctavoError` if a key is missing or has a value of another type."""
    path, hint = folder / "dataset.json", f"octavo prepare ... --out {folder}"
    if not path.exists():
        raise OctavoError(f"{folder} is not a prepared dataset: it has no dataset.json", hint)
    info = schema.read_json(path, dict[str, Any], hint)
    if info.get("format", FORMAT) != FORMAT:
        raise OctavoError(f"{path} has format {info['format']!r}, and this version reads format {FORMAT}", hint)
    schema.check(info, _DatasetInfo, str(path), hint)
    for split in SPLITS:
        if split not in info["tokens"] or not info["shards"].get(split):
            raise OctavoError(f"{path} is damaged: it has no tokens of the split {split}", hint)
        for name in info["shards"][split]:
            if name not in info["files"]:
                raise OctavoError(f"{path} is damaged: {name} is not in its list of files", hint)
    if "checksum" in info and info["checksum"] != checksum(info):
        raise OctavoError(f"{path} was changed since it was written: its checksum differs", hint)
    return info


def _check_files(folder: Path, info: dict[str, Any], properties: FileProperties) -> None:
    for name, entry in info["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"] or properties.sha256(name) != entry["sha256"]:
            raise OctavoError(f"{path} is missing or was changed since it was prepared", "prepare the text again")
