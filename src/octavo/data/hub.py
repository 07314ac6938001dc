"""Read a dataset of the Hugging Face hub: `hf:NAME`, `hf:NAME:CONFIG`, `hf:NAME@SPLIT`, or a local `hf:./folder`.

Rows are streamed. The rows of a dataset on the hub are written to the cache while they are first read, so reading them
again, or resuming a run, needs no network. A local folder is not copied.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from octavo import files
from octavo.data import rows
from octavo.data.decoding import TextFormat
from octavo.errors import OctavoError, install_command
from octavo.settings import expand_home


def name(source: str) -> str:
    """The name of the corpus: the last part of the dataset's name."""
    return Path(_parse(source)[0]).name


def cached_rows(source: str, text_format: TextFormat) -> Path | None:
    """The file in the cache for the rows of a dataset, whether or not it exists. None for a local folder."""
    dataset, config, split = _parse(source)
    if os.path.isdir(dataset):
        return None
    key = repr((dataset, config, split, text_format.text_field, text_format.errors))
    identity = hashlib.sha256(key.encode()).hexdigest()[:16]
    return files.cache_dir() / "hf" / f"{dataset.replace('/', '--')}-{identity}.jsonl"


def read_rows(source: str, text_format: TextFormat) -> Iterator[str]:
    """Yield the text of each row."""
    cached = cached_rows(source, text_format)
    if cached is None:
        yield from _stream_rows(*_parse(source), text_format)
        return
    if cached.is_file():
        with open(cached, "rb") as file:
            for line in file:
                yield json.loads(line)
        return
    with files.translate_disk_errors(cached):
        cached.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_file(cached) as file:
        for text in _stream_rows(*_parse(source), text_format):
            file.write(json.dumps(text).encode() + b"\n")
            yield text


def _parse(source: str) -> tuple[str, str | None, str]:
    """The dataset, its configuration and its split. A folder's name may have a colon, so folders are tried first."""
    reference, _, split = source.removeprefix("hf:").partition("@")
    reference = expand_home(reference)
    if os.path.isdir(reference):
        return os.path.abspath(reference), None, split or "train"
    dataset, _, config = reference.partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset):
        raise OctavoError(f"{source!r} is neither a dataset's name nor a folder", "hf:roneneldan/TinyStories")
    return dataset, config or None, split or "train"


def _stream_rows(dataset: str, config: str | None, split: str, text_format: TextFormat) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise OctavoError(f"hf:{dataset} needs the package datasets", install_command("hf")) from None
    location = f"hf:{dataset}, split {split}"
    try:
        records: Iterable[dict[str, Any]] = datasets.load_dataset(dataset, config, split=split, streaming=True)
        for number, row in enumerate(records, 1):
            yield rows.row_text(row, f"{location}, row {number:,}", text_format)
    except OctavoError:
        raise
    except Exception as error:  # errors of the network, the hub and the file formats have no common class
        lines = str(error).strip().splitlines()
        raise OctavoError(
            f"{location}, cannot be read: {lines[0] if lines else type(error).__name__}",
            "check its name, configuration and split, and the network",
        ) from error
