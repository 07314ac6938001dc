"""Text to token files: a folder that training reads, made once and known by its fingerprint.

    train.npy val.npy             ids, uint16, or uint32 where the vocabulary needs it
    tokenizer.json ...            the tokenizer, as every checkpoint carries it
    dataset.json                  source, sizes, split, fingerprint; written last

The split is by position: the end of the text is for validation. `dataset` is what training calls: it takes
any source, and prepares it into the cache unless that very text, tokenized that very way, is there already.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo import files, tokenizers
from octavo.data import corpora
from octavo.errors import OctavoError
from octavo.settings import DataSettings
from octavo.tokenizers import Tokenizer

FORMAT = 1
_SMALL_TEXT = 8 << 20  # bytes below which characters are the better tokens for a small model
_FEW_CHARACTERS = 256


@dataclass(frozen=True)
class Dataset:
    """A prepared folder, opened."""

    folder: Path
    tokenizer: Tokenizer
    info: dict[str, Any]  # dataset.json

    @property
    def name(self) -> str:
        """The corpus's, after which a run is called."""
        return str(self.info["name"])

    @property
    def origin(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, so that `dataset_again` finds or makes it again."""
        kept = ("name", "source", "text", "tokenizer", "split", "fingerprint", "cache_key")
        return {key: self.info[key] for key in kept}

    @property
    def fingerprint(self) -> str:
        """Of the text, its split and the tokenizer: two datasets that share it have the same tokens."""
        return str(self.info["fingerprint"])

    def path(self, split: str) -> Path:
        """The token file of a split, "train" or "val"."""
        return self.folder / f"{split}.npy"

    def tokens(self, split: str) -> np.ndarray:
        """The ids of a split, mapped into memory, not read."""
        mapped: np.ndarray = np.load(self.path(split), mmap_mode="r")
        return mapped


def dataset(settings: DataSettings, tokenizer: Tokenizer | None = None) -> Dataset:
    """The tokens of a source: a folder that `prepare` made, or text, prepared into the cache.

    With a tokenizer (of the model that is fine-tuned) that one is used, whatever the settings say.
    """
    folder = Path(settings.source)
    if os.path.isfile(folder / "dataset.json"):  # pathlib's raises where a name is too long
        return _opened_as(folder, settings, tokenizer)
    return _cached_or_made(corpora.read(settings.source, settings.encoding, settings.errors), settings, tokenizer)


def _cached_or_made(corpus: corpora.Corpus, settings: DataSettings, tokenizer: Tokenizer | None) -> Dataset:
    maker = tokenizer or _spec(settings, corpus)
    cached = _cached(_cache_key(corpus, maker, settings.val_fraction))
    if (cached / "dataset.json").is_file():
        with contextlib.suppress(OctavoError):  # a damaged copy is made anew
            found = open_dataset(cached)  # perhaps of the same text under another name
            return dataclasses.replace(found, info=found.info | {"name": corpus.name, "source": settings.source})
    return _write(corpus, settings, maker, cached)


def dataset_again(settings: DataSettings, known: dict[str, Any], tokenizer: Tokenizer) -> Dataset:
    """The very dataset that a checkpoint's `data` tells of: still in the cache, or made again from its source.

    Raises `OctavoError` if the source has become another text.
    """
    cached = _cached(known["cache_key"])
    if settings.source == known["source"] and (cached / "dataset.json").is_file():
        with contextlib.suppress(OctavoError):
            found = open_dataset(cached)
            if found.fingerprint == known["fingerprint"]:
                return found
    other = OctavoError(f"{settings.source} is not the text that this run was trained on",
                        "--init RUN, which starts a new run from its weights, with any text")  # fmt: skip
    if os.path.isfile(Path(settings.source) / "dataset.json"):
        made = dataset(settings, tokenizer)
    else:
        corpus = corpora.read(settings.source, settings.encoding, settings.errors)
        if corpus.sha256 != known["text"]["sha256"]:
            raise other  # before the tokenizer meets characters that it doesn't know
        made = _cached_or_made(corpus, settings, tokenizer)
    if made.fingerprint != known["fingerprint"]:
        raise other
    return made


def is_at_hand(settings: DataSettings, known: dict[str, Any]) -> bool:
    """Whether the dataset that a checkpoint's `data` tells of lies prepared, so that no text need be read for it."""
    folders = _cached(known["cache_key"]), Path(settings.source)
    return any(os.path.isfile(folder / "dataset.json") for folder in folders)


def prepare(settings: DataSettings, out: str | Path) -> Dataset:
    """Prepare a source into the folder `out`, which must not hold anything yet."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OctavoError(f"{out} already holds something", "another --out, or delete it first")
    corpus = corpora.read(settings.source, settings.encoding, settings.errors)
    return _write(corpus, settings, _spec(settings, corpus), out)


def open_dataset(folder: Path) -> Dataset:
    """A folder that `prepare` made, held against what its `dataset.json` says."""
    try:
        info = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in info["files"].items()}
        vocab_size = int(info["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OctavoError(f"{folder} is not a prepared folder: {error}", f"octavo prepare ... --out {folder}") from None
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or files.sha256(path) != digest:
            raise OctavoError(f"{path} is not the file that was prepared: it is missing or changed",
                              "prepare the text again")  # fmt: skip
    for split in ("train", "val"):
        try:
            tokens = np.load(folder / f"{split}.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise OctavoError(
                f"{folder / f'{split}.npy'} is no token file: {error}", "prepare the text again"
            ) from None
        if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
            raise OctavoError(f"{folder / f'{split}.npy'} is no token file: {tokens.ndim} axes of {tokens.dtype}",
                              "prepare the text again")  # fmt: skip
        largest = max((int(tokens[i : i + (1 << 24)].max()) for i in range(0, len(tokens), 1 << 24)), default=0)
        if largest >= vocab_size:
            raise OctavoError(f"{folder / f'{split}.npy'} has id {largest}, beyond the vocabulary of {vocab_size}",
                              "prepare the text again")  # fmt: skip
    return Dataset(folder, tokenizers.load(folder), info)


def tokenizer_for(text: str) -> str:
    """The tokenizer that suits a text, where nobody said one.

    Characters for a small text in an alphabet; else BPE, with one token of vocabulary for about 500 bytes
    of text, between 1,024 and 32,768.
    """
    size = len(text.encode(errors="replace"))
    if size <= _SMALL_TEXT and len(set(text)) <= _FEW_CHARACTERS:
        return "char"
    return f"bpe:{min(32768, max(1024, 1 << (size // 500).bit_length()))}"


def _spec(settings: DataSettings, corpus: corpora.Corpus) -> str:
    return tokenizer_for(corpus.text) if settings.tokenizer == "auto" else settings.tokenizer


def _cached(key: str) -> Path:
    return files.cache_dir() / "prepared" / key


def _cache_key(corpus: corpora.Corpus, maker: str | Tokenizer, val_fraction: float) -> str:
    made_by = maker if isinstance(maker, str) else maker.fingerprint
    return hashlib.sha256(f"{FORMAT} {corpus.sha256} {made_by} {val_fraction!r}".encode()).hexdigest()[:24]


def _write(corpus: corpora.Corpus, settings: DataSettings, maker: str | Tokenizer, out: Path) -> Dataset:
    """Tokenize a corpus, by a tokenizer or what one is built from, and put the folder in its place, whole."""
    cut = int(len(corpus.text) * (1 - settings.val_fraction))
    parts = {"train": corpus.text[:cut], "val": corpus.text[cut:]}
    tokenizer = tokenizers.build(maker, corpus.text) if isinstance(maker, str) else maker
    identity = f"{corpus.sha256} {tokenizer.fingerprint} {settings.val_fraction!r}"
    info: dict[str, Any] = {
        "format": FORMAT,
        "name": corpus.name,
        "source": settings.source,
        "text": {"sha256": corpus.sha256, "bytes": corpus.size, "characters": len(corpus.text)},
        "tokenizer": maker if isinstance(maker, str) else maker.kind,
        "vocab_size": tokenizer.vocab_size,
        "split": {"by": "position", "val_fraction": settings.val_fraction},
        "tokens": {},
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
        "cache_key": _cache_key(corpus, maker, settings.val_fraction),
        "files": {},
    }
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    with files.whole_folder(out) as partial:
        tokenizer.save(partial)
        for split, text in parts.items():
            try:
                ids = tokenizer.encode(text)
            except OctavoError as error:
                raise OctavoError(f"{corpus.name} has {error.message}",
                                  "a text in that alphabet, or a model of --tokenizer byte") from None  # fmt: skip
            if len(ids) < 2:
                raise OctavoError(f"the text has {len(corpus.text)} characters, too few to train on and validate",
                                  "a longer text")  # fmt: skip
            info["tokens"][split] = len(ids)
            _write_tokens(partial / f"{split}.npy", ids.astype(dtype))
        for path in sorted(partial.iterdir()):
            info["files"][path.name] = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        (partial / "dataset.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return Dataset(out, tokenizer, info)


def _write_tokens(path: Path, ids: np.ndarray) -> None:
    """`np.save`, but for a full disk, of which its error doesn't tell."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(ids))
        file.write(ids.data)


def _opened_as(folder: Path, settings: DataSettings, tokenizer: Tokenizer | None) -> Dataset:
    """A prepared folder, if it was prepared with the tokenizer that is asked for."""
    found = open_dataset(folder)
    if tokenizer is not None:
        if tokenizer.fingerprint != found.tokenizer.fingerprint:
            raise OctavoError(f"{folder} was prepared with another tokenizer than the model's",
                              "give the text itself; it is prepared with the model's tokenizer")  # fmt: skip
        return found
    if settings.tokenizer not in ("auto", found.info["tokenizer"]):
        raise OctavoError(f"{folder} was prepared with the tokenizer {found.info['tokenizer']}, not "
                          f"{settings.tokenizer}", f"--tokenizer {found.info['tokenizer']}")  # fmt: skip
    return found
