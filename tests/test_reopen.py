"""The dataset of a run that is resumed."""

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from folders import flip_bit, truncate
from octavo.data.prepare import prepare, prepare_dataset, reopen_dataset
from octavo.settings import DataSettings
from preparing import (
    ANOTHER_TEXT,
    SPECS,
    SPLITS,
    TEXT,
    data_settings,
    decode,
    error_of,
    prepare_cached,
    reopen,
    write,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "text.txt", TEXT)


SOURCE_CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "untouched": (lambda path: None, ""),
    "touched": (lambda path: os.utime(path, (1.6e9, 1.6e9)), ""),
    "grew": (lambda path: write(path, TEXT + "more\n"), "is not the text"),
    "shrank": (lambda path: write(path, TEXT[:-20]), "is not the text"),
    "edited": (lambda path: write(path, TEXT.replace("quick", "QUICK")), "is not the text"),
    "replaced by binary data": (lambda path: write(path, b"\x89PNG\0\0"), "is binary"),
    "emptied": (lambda path: write(path, ""), "is empty"),
    "removed": (Path.unlink, "and this run was trained on it"),
}


@pytest.mark.parametrize("cache", ["present", "absent", "damaged", "tokens only"])
@pytest.mark.parametrize("change", SOURCE_CHANGES)
def test_whether_a_run_can_be_resumed_depends_on_its_source_and_not_on_the_cache(
    source: Path, own_cache: Path, change: str, cache: str
) -> None:
    os.utime(source, (1.7e9, 1.7e9))
    data = prepare_cached(source)
    act, problem = SOURCE_CHANGES[change]
    act(source)
    match cache:
        case "absent":
            shutil.rmtree(own_cache)
        case "damaged":
            flip_bit(data.folder / "train-00000.npy")
        case "tokens only":
            shutil.rmtree(own_cache / "scans")
    if not problem:
        reopened = reopen(data, source)
        assert (reopened.fingerprint, decode(reopened)) == (data.fingerprint, TEXT)
    else:
        assert problem in error_of(lambda: reopen(data, source)).message


def test_the_hint_for_a_missing_source_names_the_tokens_in_the_cache(source: Path, own_cache: Path) -> None:
    data = prepare_cached(source)
    source.unlink()
    assert f"octavo train {data.folder} --resume RUN" in str(error_of(lambda: reopen(data, source)).hint)
    assert reopen(data, data.folder).folder == data.folder
    shutil.rmtree(own_cache)
    assert "cache" not in str(error_of(lambda: reopen(data, source)).hint)


@pytest.mark.parametrize("cache", ["present", "absent"])
def test_a_run_is_not_resumed_with_another_split(source: Path, own_cache: Path, cache: str) -> None:
    data = prepare_cached(source)
    if cache == "absent":
        shutil.rmtree(own_cache)
    settings = data_settings(source, val_fraction=0.2)
    assert "val_fraction" in error_of(lambda: reopen_dataset(settings, data.origin, data.tokenizer).result).message


@pytest.mark.parametrize("spec", SPECS)
def test_a_run_prepares_its_text_again_if_the_cache_is_gone(source: Path, own_cache: Path, spec: str) -> None:
    data = prepare_cached(source, spec)
    ids = [list(data.tokens[split]) for split in SPLITS]
    shutil.rmtree(own_cache)
    reopened = reopen(data, source, spec)
    assert (reopened.fingerprint, reopened.tokenizer.fingerprint) == (data.fingerprint, data.tokenizer.fingerprint)
    assert [list(reopened.tokens[split]) for split in SPLITS] == ids


@pytest.mark.parametrize("text", [TEXT + "x", ANOTHER_TEXT, TEXT.swapcase(), "\u0950" * 500])
@pytest.mark.parametrize("spec", ["char", "byte"])
def test_a_run_rejects_another_text(source: Path, own_cache: Path, spec: str, text: str) -> None:
    data = prepare_cached(source, spec)
    shutil.rmtree(own_cache)
    write(source, text)
    error = error_of(lambda: reopen(data, source, spec))
    assert f"{source} is not the text" in error.message
    assert "--init" in str(error.hint)


def test_a_run_accepts_its_text_at_another_path(source: Path, tmp_path: Path) -> None:
    data = prepare_cached(source, "bpe:300")
    moved = source.rename(tmp_path / "moved.txt")
    assert reopen(data, moved, "bpe:300").fingerprint == data.fingerprint
    other = write(tmp_path / "other.txt", ANOTHER_TEXT)
    assert f"{other} is not the text" in error_of(lambda: reopen(data, other, "bpe:300")).message


def test_a_run_reopens_a_prepared_folder(source: Path, tmp_path: Path) -> None:
    data = prepare(source, tmp_path / "one", tokenizer="word")
    assert reopen(data, tmp_path / "one", "word").folder == tmp_path / "one"
    prepare(write(tmp_path / "other.txt", ANOTHER_TEXT), tmp_path / "two", tokenizer="byte")
    assert "another tokenizer" in error_of(lambda: reopen(data, tmp_path / "two")).message


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
def test_a_run_does_not_use_a_damaged_cache(source: Path, damage: Callable[[Path], None]) -> None:
    data = prepare_cached(source)
    damage(data.tokens["train"].shards[0].path)
    rebuilt = reopen(data, source)
    assert decode(rebuilt) == TEXT
    damage(rebuilt.tokens["train"].shards[0].path)
    source.unlink()
    assert str(source) in error_of(lambda: reopen(data, source)).message


def test_a_run_reads_its_text_from_standard_input_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DataSettings(source="-", tokenizer="char")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    data = prepare_dataset(settings).result
    shutil.rmtree(own_cache)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert decode(reopen(data, "-")) == TEXT
