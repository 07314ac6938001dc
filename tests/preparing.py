"""What the tests of `octavo.data` share: write sources, read them, and catch errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.data.sources import Corpus, open_source
from octavo.errors import OctavoError
from octavo.settings import DataSettings


def data_settings(source: object, tokenizer: str = "char", **changes: Any) -> DataSettings:
    return DataSettings(source=str(source), tokenizer=tokenizer, **changes)


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
