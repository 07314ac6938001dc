"""What the tests of `octavo.data` share: write sources, read them, and catch errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.data.dataset import Dataset
from octavo.data.prepare import prepare_dataset, reopen_dataset
from octavo.data.sources import Corpus, open_source
from octavo.errors import OctavoError
from octavo.settings import DataSettings
from octavo.tokenizers import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog.\nNaïve: 漢字 \U0001f600 नमस्ते!\n" * 12
ANOTHER_TEXT = "another text\n" * 50
SPECS = ["char", "byte", "word", "word:300", "bpe:300"]
SPLITS = ("train", "val")


def data_settings(source: object, tokenizer: str = "char", **changes: Any) -> DataSettings:
    return DataSettings(source=source if isinstance(source, tuple) else str(source), tokenizer=tokenizer, **changes)


def write(path: Path, content: str | bytes) -> Path:
    """Write a file without translating line ends. Its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    """Write a line for each text: a JSON object with an id and the text."""
    return write(path, "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)))


def read_corpus(corpus: Corpus) -> list[str]:
    """The text of each document."""
    documents = [""]
    for text, ends_document, _ in corpus.chunks():
        documents[-1] += text
        if ends_document:
            documents.append("")
    assert documents.pop() == ""
    return documents


def read_source(source: object, **changes: Any) -> list[str]:
    """The text of each document of a source."""
    return read_corpus(open_source(data_settings(source, **changes)))


def error_of(act: Callable[[], object]) -> OctavoError:
    """The error that `act` raises, which must have a hint."""
    with pytest.raises(OctavoError) as caught:
        act()
    assert caught.value.hint
    return caught.value


def source_error(source: object, **changes: Any) -> OctavoError:
    """The error of reading a source."""
    return error_of(lambda: read_source(source, **changes))


def prepare_cached(
    source: Path, spec: str = "char", model_tokenizer: Tokenizer | None = None, **changes: Any
) -> Dataset:
    """The dataset of a source in the cache."""
    return prepare_dataset(data_settings(source, spec, **changes), model_tokenizer).result


def decode_splits(data: Dataset) -> list[str]:
    return [data.tokenizer.decode(data.tokens[split]) for split in SPLITS]


def decode(data: Dataset) -> str:
    return "".join(decode_splits(data))


def reopen(data: Dataset, source: object, spec: str = "char") -> Dataset:
    """The dataset of a run that was trained on `data`."""
    return reopen_dataset(data_settings(source, spec), data.origin, data.tokenizer).result
