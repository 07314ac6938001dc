"""Datasets by name from the Hugging Face hub: `hf:NAME`, `hf:NAME:CONFIG`, `hf:NAME@SPLIT`, or `hf:./folder`.

Rows are streamed. Those of a hub's dataset are put down in the cache as they come, once: what reads them again, or goes
on with a run, needs no network. A folder of a dataset is read where it lies.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from octavo import files
from octavo.data import readers
from octavo.data.readers import Reading
from octavo.errors import OctavoError


def name(source: str) -> str:
    """What to call it: the last part of the dataset's name."""
    return Path(_parts(source)[0]).name


def rows(source: str, how: Reading) -> Iterator[str]:
    """The texts of a dataset's rows, one after another."""
    dataset, config, split = _parts(source)
    if os.path.isdir(dataset):
        yield from _streamed(dataset, config, split, how)
        return
    asked = hashlib.sha256(repr((dataset, config, split, how)).encode()).hexdigest()[:16]
    kept = files.cache_dir() / "hf" / f"{dataset.replace('/', '--')}-{asked}.jsonl"
    if kept.is_file():
        with open(kept, "rb") as file:
            for line in file:
                yield json.loads(line)
        return
    with files.translate_disk_errors(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_file(kept) as file:
        for text in _streamed(dataset, config, split, how):
            file.write(json.dumps(text).encode() + b"\n")
            yield text


def _parts(source: str) -> tuple[str, str | None, str]:
    """The dataset, its configuration and split. A folder may have a colon in its name, so that is asked first."""
    named, _, split = source.removeprefix("hf:").partition("@")
    if os.path.isdir(named):
        return os.path.abspath(named), None, split or "train"
    dataset, _, config = named.partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset):
        raise OctavoError(f"{source!r} names no dataset, and no folder of one", "hf:roneneldan/TinyStories")
    return dataset, config or None, split or "train"


def _streamed(dataset: str, config: str | None, split: str, how: Reading) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise OctavoError(f"hf:{dataset} needs the package datasets", "pip install 'octavo[hf]'") from None
    place = f"hf:{dataset}, split {split},"
    try:
        found: Iterable[dict[str, Any]] = datasets.load_dataset(dataset, config, split=split, streaming=True)
        for number, row in enumerate(found, 1):
            yield readers.row_text(row, f"{place} row {number:,},", how)
    except OctavoError:
        raise
    except Exception as error:  # of the network, the hub, the format: the package raises what those raise
        said = str(error).strip().splitlines()
        raise OctavoError(f"{place} can't be read: {said[0] if said else type(error).__name__}",
                          "check its name, configuration and split, and the network") from error  # fmt: skip
