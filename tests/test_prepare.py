"""Prepared datasets: their tokens decode to the text, they are found again, and changed files are rejected."""

import hashlib
import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folders import contents, file_size_limit, flip_bit, truncate
from octavo import cli, files, tokenizers
from octavo.data import hub, pydocs
from octavo.data.dataset import checksum, open_dataset
from octavo.data.file_state import FileProperties
from octavo.data.prepare import choose_tokenizer, is_cached, prepare, prepare_dataset
from octavo.data.shards import open_npy, write_npy
from preparing import (
    SPECS,
    SPLITS,
    TEXT,
    data_settings,
    decode,
    decode_splits,
    error_of,
    prepare_cached,
    reopen,
    write,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "text.txt", TEXT)


def modification_times(folder: Path) -> dict[Path, int]:
    """When each file and folder under `folder` was last changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# The files of a dataset


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("val_fraction", [0.1, 0.37])
def test_the_splits_decode_to_the_text(source: Path, tmp_path: Path, spec: str, val_fraction: float) -> None:
    prepared = prepare(source, tmp_path / "out", tokenizer=spec, val_fraction=val_fraction)
    for data in (prepared, open_dataset(tmp_path / "out")):
        train, val = decode_splits(data)
        assert train + val == TEXT
        assert len(train) == int(len(TEXT) * (1 - val_fraction))
        assert {split: len(data.tokens[split]) for split in SPLITS} == data.info["tokens"]


@pytest.mark.parametrize("length", [20, 21, 29, 99, 100, 101, 1003])
def test_characters_are_split_where_nanogpt_splits_them(tmp_path: Path, length: int) -> None:
    """`n = len(data); train_data = data[:int(n*0.9)]` in its data/shakespeare_char/prepare.py"""
    text = "".join(chr(ord("a") + i % 26) for i in range(length))
    data = prepare(write(tmp_path / "text.txt", text), tmp_path / "out", tokenizer="char")
    assert decode_splits(data) == [text[: int(length * 0.9)], text[int(length * 0.9) :]]
    alphabet = sorted(set(text))
    assert list(data.tokens["train"]) == [alphabet.index(c) for c in text[: int(length * 0.9)]]


@pytest.mark.parametrize(("characters", "dtype"), [(65, "uint16"), ((1 << 16) - 1, "uint16"), (1 << 16, "uint32")])
def test_ids_have_16_bits_unless_the_vocabulary_needs_more(tmp_path: Path, characters: int, dtype: str) -> None:
    text = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x20000)][:characters]))
    text = text[-1] + text + text[-1]  # the highest id in both splits
    data = prepare(write(tmp_path / "text.txt", text), tmp_path / "out", tokenizer="char")
    assert data.info["vocab_size"] == data.tokenizer.vocab_size == characters + 1
    for split in SPLITS:
        assert data.tokens[split].shards[0].dtype == dtype
        assert data.tokens[split].max() == characters - 1
    assert decode(open_dataset(tmp_path / "out")) == text


def test_dataset_json_describes_the_text_the_split_and_the_files(source: Path, tmp_path: Path) -> None:
    data = prepare(source, tmp_path / "out", tokenizer="word:300", val_fraction=0.25)
    info = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert info == data.info == open_dataset(tmp_path / "out").info
    assert info.pop("checksum") == checksum(info)
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    entries = info.pop("files")
    assert {name: (entry["bytes"], entry["sha256"]) for name, entry in entries.items()} == {
        name: (len(content), hashlib.sha256(content).hexdigest())
        for name, content in contents(tmp_path / "out").items()
        if name != "dataset.json"
    }
    assert info.pop("fingerprint") == data.fingerprint
    assert len(info.pop("cache_key")) == 24
    assert info == {
        "format": 2,
        "name": "text",
        "source": str(source),
        "text": {"sha256": sha256, "bytes": len(TEXT.encode()), "characters": len(TEXT), "documents": 1, "left_out": 0},
        "tokenizer": "word:300",
        "vocab_size": data.tokenizer.vocab_size,
        "special_tokens": False,
        "split": {"by": "position", "val_fraction": 0.25},
        "tokens": {split: len(data.tokens[split]) for split in SPLITS},
        "shards": {split: [f"{split}-00000.npy"] for split in SPLITS},
    }


def test_the_fingerprint_depends_on_text_tokenizer_and_split_alone(tmp_path: Path) -> None:
    numbers = iter(range(100))

    def fingerprint(name: str, text: str = TEXT, spec: str = "char", **changes: Any) -> str:
        out = tmp_path / f"out {next(numbers)}"
        return prepare(write(tmp_path / name, text), out, tokenizer=spec, **changes).fingerprint

    same = fingerprint("a.txt")
    assert same == fingerprint("a.txt") == fingerprint("b.md") == fingerprint("c.txt", "\ufeff" + TEXT)
    others = [
        fingerprint("a.txt", TEXT + "\n"),
        fingerprint("a.txt", TEXT.replace("fox", "xof")),  # each character is as frequent as before
        fingerprint("a.txt", val_fraction=0.11),
        *(fingerprint("a.txt", spec=spec) for spec in ("byte", "word", "bpe:300")),
    ]
    assert len({same, *others}) == 1 + len(others)


# The cache


def test_a_text_is_prepared_once(source: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_cached(source)
    assert own_cache in first.folder.parents
    before = modification_times(own_cache)
    monkeypatch.setattr(tokenizers, "build", None)
    second = prepare_cached(source)
    assert modification_times(own_cache) == before
    assert (second.folder, second.info, decode(second)) == (first.folder, first.info, decode(first))


def test_each_tokenizer_and_split_is_cached_separately(source: Path) -> None:
    changes: list[dict[str, Any]] = [*({"spec": spec} for spec in SPECS), {"val_fraction": 0.2}]
    folders = [prepare_cached(source, **each).folder for each in changes]
    assert len(set(folders)) == len(changes)
    assert [prepare_cached(source, **each).folder for each in changes] == folders
    assert prepare_cached(source, "auto").folder == folders[0]  # `auto` chooses characters for a small text


def test_another_text_in_the_same_file_is_another_dataset(source: Path) -> None:
    prepare_cached(source)
    write(source, "other\n" * 50)
    assert decode_splits(prepare_cached(source)) == ["other\n" * 45, "other\n" * 5]


def test_the_same_text_in_another_file_keeps_its_own_name(source: Path, tmp_path: Path) -> None:
    first = prepare_cached(source)
    second = prepare_cached(write(tmp_path / "another.txt", TEXT))
    assert second.folder == first.folder
    assert (second.name, second.info["source"]) == ("another", str(tmp_path / "another.txt"))


FILES = ["train-00000.npy", "val-00000.npy", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", [*FILES, "dataset.json"])
@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
def test_a_damaged_dataset_in_the_cache_is_rebuilt(source: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = prepare_cached(source).folder
    before = contents(folder)
    damage(folder / name)
    if damage is flip_bit and name == "dataset.json":  # a bit may not matter there: damage a key
        (folder / name).write_bytes(before[name].replace(b'"files"', b'"fives"'))
    assert decode(prepare_cached(source)) == TEXT
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_tokenizer_of_a_model_overrides_the_setting(source: Path, tmp_path: Path) -> None:
    of_model = tokenizers.build("bpe:280", "the rain in spain falls mainly in the plain " * 20)
    data = prepare_cached(source, "char", of_model)
    assert data.tokenizer.fingerprint == of_model.fingerprint
    assert decode(data) == TEXT
    prepare(source, tmp_path / "prepared", tokenizer="char")
    assert "another tokenizer" in error_of(lambda: prepare_cached(tmp_path / "prepared", "char", of_model)).message
    too_small = tokenizers.build("char", "abc")
    message = error_of(lambda: prepare_cached(source, "char", too_small)).message
    assert "text: unknown characters" in message


# A folder of the user's


def test_a_prepared_folder_is_a_source(source: Path, tmp_path: Path, own_cache: Path) -> None:
    prepared = prepare(source, tmp_path / "out", tokenizer="word")
    for spec in ("auto", "word"):
        data = prepare_cached(tmp_path / "out", spec)
        assert (data.folder, data.info) == (tmp_path / "out", prepared.info)
    assert contents(own_cache) == {}
    error = error_of(lambda: prepare_cached(tmp_path / "out", "char"))
    assert "tokenizer word, not char" in error.message
    assert error.hint == "--tokenizer word"


@pytest.mark.parametrize("existing", ["file", "folder", "dataset"])
def test_an_existing_file_or_folder_is_not_overwritten(source: Path, tmp_path: Path, existing: str) -> None:
    out = tmp_path / "out"
    match existing:
        case "file":
            write(out, "mine")
        case "folder":
            write(out / ".hidden", "mine")
        case _:
            prepare(source, out)
    before = contents(tmp_path)
    assert f"{out} already exists" in error_of(lambda: prepare(source, out)).message
    assert contents(tmp_path) == before


def test_an_empty_folder_can_be_prepared_into(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert prepare(source, str(tmp_path / "out")).folder == tmp_path / "out"
    assert decode(open_dataset(tmp_path / "out")) == TEXT


@pytest.mark.parametrize("text", ["a", "ab", "abcdefghij"])
def test_a_text_too_short_to_split_is_rejected_and_nothing_is_written(
    tmp_path: Path, own_cache: Path, text: str
) -> None:
    short = write(tmp_path / "text.txt", text)
    for act in (lambda: prepare(short, tmp_path / "out", tokenizer="char"), lambda: prepare_cached(short)):
        assert f"{len(text)} characters, too few" in error_of(act).message
    assert contents(tmp_path) == {"text.txt": text.encode()}
    assert contents(own_cache) == {}


def test_a_text_of_eleven_characters_can_be_split(tmp_path: Path) -> None:
    prepare(write(tmp_path / "text.txt", "abcdefghijk"), tmp_path / "out", tokenizer="char")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file size")
def test_a_full_disk_is_reported_and_nothing_is_left(tmp_path: Path, own_cache: Path) -> None:
    source = write(tmp_path / "text.txt", "abc\n" * 5_000)
    for act in (lambda: prepare(source, tmp_path / "out", tokenizer="char"), lambda: prepare_cached(source)):
        with file_size_limit(20_000):
            assert "disk is full" in error_of(act).message
    assert contents(tmp_path) == {"text.txt": b"abc\n" * 5_000}
    assert contents(own_cache) == {}


# Datasets that are rejected


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
def test_a_changed_or_missing_file_is_named(
    source: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    out = prepare(source, tmp_path / "out").folder
    damage(out / name)
    assert f"{out / name} is missing or was changed" in error_of(lambda: open_dataset(out)).message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b'{"files": {}}',
        b'{"vocab_size": 3}',
        b'{"files": {}, "vocab_size": "many"}',
        b'{"files": {}, "vocab_size": null}',
        b'{"files": [], "vocab_size": 3}',
        b'{"files": {"train.npy": 5}, "vocab_size": 3}',
        b'{"files": {"train.npy": {}}, "vocab_size": 3}',
    ],
)
def test_an_invalid_dataset_json_is_rejected(source: Path, tmp_path: Path, content: bytes) -> None:
    out = prepare(source, tmp_path / "out").folder
    (out / "dataset.json").write_bytes(content)
    assert str(out) in error_of(lambda: open_dataset(out)).message


def test_a_folder_that_was_not_prepared_is_rejected(tmp_path: Path) -> None:
    assert "is not a prepared dataset" in error_of(lambda: open_dataset(tmp_path)).message


def replace_file(out: Path, name: str, content: bytes) -> None:
    """Replace a file of a prepared folder, and its entry in dataset.json."""
    (out / name).write_bytes(content)
    info = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    info["files"][name] = {"bytes": len(content), "sha256": files.sha256(out / name)}
    info["checksum"] = checksum(info)
    (out / "dataset.json").write_text(json.dumps(info), encoding="utf-8")


def npy_bytes(array: Any, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("excess", [0, 1, 40_000])
def test_an_id_beyond_the_vocabulary_is_rejected(source: Path, tmp_path: Path, split: str, excess: int) -> None:
    data = prepare(source, tmp_path / "out", tokenizer="char")
    vocab_size, path = data.tokenizer.vocab_size, data.folder / f"{split}-00000.npy"
    ids = np.array(data.tokens[split])
    ids[-1] = vocab_size - 1
    replace_file(data.folder, path.name, npy_bytes(ids))
    open_dataset(data.folder)
    ids[-1] = vocab_size + excess
    replace_file(data.folder, path.name, npy_bytes(ids))
    message = error_of(lambda: open_dataset(data.folder)).message
    for name in (str(path), f"id {vocab_size + excess}", f"vocabulary of {vocab_size}"):
        assert name in message


class Bomb:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was unpickled",)


NOT_TOKEN_FILES = {
    "empty": b"",
    "garbage": b"not a numpy file",
    "truncated": npy_bytes([1, 2, 3] * 9)[:-1],
    "pickle": pickle.dumps(Bomb()),
    "floats": npy_bytes([0.5, 1.5]),
    "two axes": npy_bytes([[1], [2]]),
    "objects": npy_bytes(np.array([Bomb()], dtype=object), allow_pickle=True),
    "negative": npy_bytes([-1, 0]),
    "no axis": npy_bytes(1),
    "text": npy_bytes(["a"]),
}


@pytest.mark.parametrize("content", NOT_TOKEN_FILES.values(), ids=NOT_TOKEN_FILES)
def test_an_invalid_token_file_is_rejected_and_never_unpickled(source: Path, tmp_path: Path, content: bytes) -> None:
    data = prepare(source, tmp_path / "out")
    replace_file(data.folder, "val-00000.npy", content)
    assert "val-00000.npy" in error_of(lambda: open_dataset(data.folder)).message


# The choice of a tokenizer


def text_of_characters(count: int) -> str:
    """A text of `count` different characters."""
    return "".join(map(chr, range(0x4E00, 0x4E00 + count)))


def test_auto_chooses_characters_for_a_small_text_with_a_small_alphabet() -> None:
    assert choose_tokenizer(1, 1) == choose_tokenizer(768, 256) == choose_tokenizer(8 << 20, 1) == "char"
    assert choose_tokenizer(771, 257) == "bpe:1024"
    assert choose_tokenizer((8 << 20) + 1, 1) != "char"


@pytest.mark.parametrize("megabytes", [0.01, 0.3, 0.6, 1, 3, 7, 9, 40])
def test_auto_chooses_a_bpe_token_for_about_500_bytes_of_another_text(megabytes: float) -> None:
    size = int(megabytes * 1e6)
    kind, vocab_size = choose_tokenizer(size, 300).split(":")
    assert kind == "bpe"
    assert int(vocab_size).bit_count() == 1
    assert 1024 <= int(vocab_size) <= 32_768
    expected = min(max(size / 500, 1024), 32_768)
    assert expected <= int(vocab_size) <= 2 * expected


@pytest.mark.parametrize("text", ["a" * 100, text_of_characters(257) * 9])
def test_the_chosen_tokenizer_can_be_built(text: str) -> None:
    spec = choose_tokenizer(len(text.encode()), len(set(text)))
    assert tokenizers.build(spec, text).kind == spec.split(":")[0]


def test_the_chosen_tokenizer_is_recorded(tmp_path: Path) -> None:
    small = prepare_cached(write(tmp_path / "small.txt", "abc\n" * 100), "auto")
    assert small.info["tokenizer"] == small.tokenizer.kind == "char"
    text = text_of_characters(300) * 20
    large_alphabet = prepare_cached(write(tmp_path / "large-alphabet.txt", text), "auto")
    assert (large_alphabet.info["tokenizer"], large_alphabet.tokenizer.kind) == ("bpe:1024", "bpe")
    assert decode(large_alphabet) == text


# Files that are trusted because they were verified before


def make_old(folder: Path) -> None:
    """Set modification times outside of the two seconds within which a file is not trusted."""
    for path in folder.iterdir():
        os.utime(path, (1.7e9, 1.7e9))


def change_silently(path: Path) -> None:
    """Change the last byte, but neither size nor modification time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_verified_files_are_not_read_again(source: Path, tmp_path: Path) -> None:
    out = prepare(source, tmp_path / "out").folder
    make_old(out)
    open_dataset(out)  # reads and verifies them, because their times changed
    change_silently(out / "train-00000.npy")
    open_dataset(out)  # trusts them: this is what makes opening fast
    assert "train-00000" in error_of(lambda: open_dataset(out, verify=True)).message


def test_a_property_added_to_an_earlier_record_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    write_npy(path, np.arange(5, dtype=np.uint16))
    make_old(tmp_path)
    first = FileProperties(tmp_path)
    first.sha256(path.name)
    first.save()
    second = FileProperties(tmp_path)
    assert second.largest_id(open_npy(path)) == 4
    second.save()
    change_silently(path)
    assert FileProperties(tmp_path).largest_id(open_npy(path)) == 4  # from the record


def test_prepare_verify_reads_every_file_again(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepare(source, tmp_path / "out").folder
    assert cli.main(["prepare", str(out), "--verify"]) == 0
    assert str(out) in capsys.readouterr().out
    change_silently(out / "train-00000.npy")
    assert cli.main(["prepare", str(out), "--verify"]) == 2
    assert "train-00000.npy" in capsys.readouterr().err


def test_a_file_modified_within_two_seconds_is_read_again(source: Path, tmp_path: Path) -> None:
    out = prepare(source, tmp_path / "out").folder
    open_dataset(out)
    change_silently(out / "train-00000.npy")
    assert "train-00000" in error_of(lambda: open_dataset(out)).message


def test_a_copy_of_a_dataset_is_verified_when_opened(source: Path, tmp_path: Path) -> None:
    out = prepare(source, tmp_path / "out").folder
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    assert open_dataset(copy).fingerprint == open_dataset(out).fingerprint
    make_old(copy)
    change_silently(copy / "val-00000.npy")
    assert "val-00000" in error_of(lambda: open_dataset(copy)).message


def test_a_scanned_text_is_recognized_without_reading_it(source: Path) -> None:
    os.utime(source, (1.7e9, 1.7e9))
    settings = data_settings(source)
    first = prepare_dataset(settings).result
    change_silently(source)
    assert list(prepare_dataset(settings)) == []
    assert prepare_dataset(settings).result.fingerprint == first.fingerprint
    os.utime(source, (1.7e9, 1.7e9 + 1))
    assert prepare_dataset(settings).result.fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["pydocs", "hf:some/stories"])
def test_a_text_without_a_file_of_its_own_is_recognized_too(
    name: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(pydocs, "text", lambda: TEXT)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"text": TEXT}])
    first = prepare_dataset(data_settings(name)).result
    for path in (own_cache / "hf").glob("*.jsonl"):
        os.utime(path, (1.7e9, 1.7e9))
    assert prepare_dataset(data_settings(name)).result.fingerprint == first.fingerprint  # scans what was downloaded
    monkeypatch.setattr(pydocs, "text", lambda: pytest.fail("it was read"))
    monkeypatch.setattr(hub, "read_rows", lambda *_: pytest.fail("it was read"))
    assert reopen(first, name).fingerprint == first.fingerprint
    assert is_cached(data_settings(name), first.origin)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes")
def test_a_server_reads_only_small_sources(source: Path, tmp_path: Path, own_cache: Path) -> None:
    """`is_cached` is true if the tokens are in the cache, and the text is small or recognized without reading it."""
    os.utime(source, (1.7e9, 1.7e9))
    data = prepare_cached(source)
    settings = data_settings(source)
    assert is_cached(settings, data.origin)
    os.mkfifo(tmp_path / "pipe")
    for stream in ("-", tmp_path / "pipe"):
        assert not is_cached(data_settings(stream), data.origin)
    large = data.origin | {"text": data.origin["text"] | {"bytes": 1 << 30}}
    assert is_cached(settings, large)
    os.utime(source, (1.7e9, 1.7e9 + 1))
    assert not is_cached(settings, large)
    assert is_cached(settings, data.origin)
    source.unlink()
    assert not is_cached(settings, large)
    shutil.rmtree(own_cache)
    write(source, TEXT)
    assert not is_cached(settings, data.origin)


def test_a_run_trained_on_standard_input_does_not_wait_for_a_terminal(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare_cached(source)
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert "pipe" in str(error_of(lambda: reopen(data, "-")).hint)
