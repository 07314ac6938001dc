"""Statistics of a text: each count equals the one that plain Python gives."""

from collections import Counter
from pathlib import Path

import pytest

from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.prepare import prepare
from octavo.data.statistics import Statistics, compute_statistics
from preparing import data_settings, error_of, write, write_jsonl

TEXT = "The quick brown fox jumps over the lazy dog.\nA line.\n\nÜber 漢字!\n" * 30 + "at the very end: §\n"


def statistics(source: Path, tokenizer: str = "char", limits: Limits = DEFAULT_LIMITS) -> Statistics:
    return compute_statistics(data_settings(source, tokenizer), limits).result


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_every_count_equals_the_plain_one(tmp_path: Path, chunk: int) -> None:
    result = statistics(write(tmp_path / "text.txt", TEXT), limits=Limits(chunk=chunk))
    train, val = TEXT[: int(len(TEXT) * 0.9)], TEXT[int(len(TEXT) * 0.9) :]
    assert (result.name, result.documents, result.duplicates) == ("text", 1, 0)
    assert (result.characters, result.bytes) == (len(TEXT), len(TEXT.encode()))
    assert result.distinct_characters == result.vocab_size - 1 == len(set(TEXT))
    assert result.lines == len(TEXT.splitlines())
    assert result.longest_line == max(map(len, TEXT.splitlines()))
    assert result.repeated_lines == 29  # of the long line; the others are shorter than 20 characters
    assert result.tokens == {"train": len(train), "val": len(val)}
    assert (result.characters_per_token, result.unused_tokens) == (1.0, 1)  # the end-of-text token
    assert result.frequent_tokens[:3] == Counter(TEXT).most_common(3)
    unseen = {character: count for character, count in Counter(val).items() if character not in train}
    assert dict(result.unseen_characters) == unseen == {"§": 1, ":": 1}
    rare = {character: count for character, count in Counter(TEXT).items() if count < 10}
    assert dict(result.rare_characters) == rare


def test_duplicate_documents_are_counted(tmp_path: Path) -> None:
    texts = [f"document {i % 40}" for i in range(60)]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    result = statistics(source, "bpe:300")
    assert (result.documents, result.duplicates, result.lines) == (60, 20, 60)
    assert dict(result.frequent_tokens)["<|endoftext|>"] == 60
    assert statistics(source, "char").lines == 60
    assert result.characters_per_token == round(len("".join(texts)) / sum(result.tokens.values()), 4)


def test_statistics_with_deduplicate_are_those_of_a_text_without_the_copies(tmp_path: Path) -> None:
    texts = [f"document {i % 40} {chr(0x100 + i % 40)}" for i in range(60)]
    with_copies, without_copies = (
        compute_statistics(
            data_settings(write_jsonl(tmp_path / f"{name}.jsonl", rows), "char", deduplicate=True)
        ).result
        for name, rows in (("with", texts), ("without", texts[:40]))
    )
    assert (with_copies.documents, with_copies.duplicates) == (60, 20)
    assert with_copies.characters_per_token == without_copies.characters_per_token
    assert with_copies.tokens == without_copies.tokens
    assert with_copies.lines == without_copies.lines == 40
    assert with_copies.rare_characters == without_copies.rare_characters
    assert with_copies.unseen_characters == without_copies.unseen_characters != []


def test_a_prepared_folder_is_rejected(tmp_path: Path) -> None:
    prepare(write(tmp_path / "text.txt", TEXT), tmp_path / "out", tokenizer="char")
    message = error_of(lambda: statistics(tmp_path / "out")).message
    assert str(tmp_path / "out") in message
    assert "needs text" in message
