"""A look at a text: each count against the same count made plainly."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.prepare import prepare
from octavo.data.statistics import Statistics, compute_statistics
from octavo.errors import OctavoError
from octavo.settings import DataSettings

TEXT = "The quick brown fox jumps over the lazy dog.\nA line.\n\nÜber 漢字!\n" * 30 + "at the very end: §\n"


def of(source: Path, limits: Limits = DEFAULT_LIMITS, **how: Any) -> Statistics:
    return compute_statistics(DataSettings(source=str(source), **how), limits).result


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_every_count_is_the_plain_one(tmp_path: Path, chunk: int) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    found = of(tmp_path / "text.txt", Limits(chunk=chunk), tokenizer="char")
    train, val = TEXT[: int(len(TEXT) * 0.9)], TEXT[int(len(TEXT) * 0.9) :]
    assert (found.name, found.documents, found.duplicates) == ("text", 1, 0)
    assert (found.characters, found.bytes) == (len(TEXT), len(TEXT.encode()))
    assert found.different_characters == found.vocab_size == len(set(TEXT))
    assert found.lines == len(TEXT.splitlines())
    assert found.longest_line == max(map(len, TEXT.splitlines()))
    assert found.repeated_lines == 29  # of the long line; the others are short
    assert found.tokens == {"train": len(train), "val": len(val)}
    assert (found.characters_per_token, found.unused_tokens) == (1.0, 0)
    assert found.frequent_tokens[:3] == Counter(TEXT).most_common(3)
    assert (
        dict(found.unseen_characters) == {c: n for c, n in Counter(val).items() if c not in train} == {"§": 1, ":": 1}
    )
    assert dict(found.rare_characters) == {c: n for c, n in Counter(TEXT).items() if n < 10}


def test_documents_that_are_there_twice_are_counted(tmp_path: Path) -> None:
    texts = [f"document {i % 40}" for i in range(60)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(rows, encoding="utf-8")
    found = of(tmp_path / "a.jsonl", tokenizer="bpe:300")
    assert (found.documents, found.duplicates, found.lines) == (60, 20, 60)
    assert dict(found.frequent_tokens)["<|endoftext|>"] == 60
    assert of(tmp_path / "a.jsonl", tokenizer="char").lines == 60
    assert found.characters_per_token == round(len("".join(texts)) / sum(found.tokens.values()), 4)


def test_tokens_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    prepare(tmp_path / "text.txt", tmp_path / "out", tokenizer="char")
    with pytest.raises(OctavoError, match="holds tokens; stats needs text"):
        of(tmp_path / "out")
