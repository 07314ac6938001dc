"""Prepared text: tokens that decode to the text, found again by what they are, and refused when they are not."""

import hashlib
import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import cli, files, tokenizers
from octavo.data.dataset import Dataset, open_dataset
from octavo.data.prepare import choose_tokenizer, prepare_dataset, prepare_folder, reopen_dataset
from octavo.errors import OctavoError
from octavo.settings import DataSettings
from octavo.tokenizers import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog.\nNaïve: 漢字 \U0001f600 नमस्ते!\n" * 12
SPECS = ["char", "byte", "word", "word:300", "bpe:300"]


def written(path: Path, text: str = TEXT) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(tmp_path / "text.txt")


def of(source: Path, tokenizer: str = "char", **how: Any) -> DataSettings:
    return DataSettings(source=str(source), tokenizer=tokenizer, **how)


def prepare(settings: DataSettings, out: Path | str) -> Dataset:
    return prepare_folder(settings, out).result


def dataset(settings: DataSettings, tokenizer: Tokenizer | None = None) -> Dataset:
    return prepare_dataset(settings, tokenizer).result


def decoded(data: Dataset) -> list[str]:
    return [data.tokenizer.decode(data.tokens(split)) for split in ("train", "val")]


def ids(data: Dataset, split: str) -> list[int]:
    return list(data.tokens(split))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`, hidden ones too."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def times(folder: Path) -> dict[Path, int]:
    """When each file under `folder`, and each folder, was last changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refusal(call: Callable[[], object]) -> OctavoError:
    with pytest.raises(OctavoError) as caught:
        call()
    assert caught.value.hint
    return caught.value


# What is written


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("val_fraction", [0.1, 0.37])
def test_both_splits_together_decode_to_the_text(source: Path, tmp_path: Path, spec: str, val_fraction: float) -> None:
    made = prepare(of(source, spec, val_fraction=val_fraction), tmp_path / "out")
    for data in (made, open_dataset(tmp_path / "out")):
        train, val = decoded(data)
        assert train + val == TEXT
        assert len(train) == int(len(TEXT) * (1 - val_fraction))
        assert {split: len(data.tokens(split)) for split in ("train", "val")} == data.info["tokens"]


@pytest.mark.parametrize("length", [20, 21, 29, 99, 100, 101, 1003])
def test_characters_are_split_where_nanogpt_splits_them(tmp_path: Path, length: int) -> None:
    """`n = len(data); train_data = data[:int(n*0.9)]` in its data/shakespeare_char/prepare.py"""
    text = "".join(chr(ord("a") + i % 26) for i in range(length))
    data = prepare(of(written(tmp_path / "text.txt", text)), tmp_path / "out")
    assert decoded(data) == [text[: int(length * 0.9)], text[int(length * 0.9) :]]
    alphabet = sorted(set(text))
    assert ids(data, "train") == [alphabet.index(c) for c in text[: int(length * 0.9)]]


@pytest.mark.parametrize(("characters", "dtype"), [(65, "uint16"), (1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_ids_take_two_bytes_where_the_vocabulary_allows_and_four_where_not(
    tmp_path: Path, characters: int, dtype: str
) -> None:
    text = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x20000)][:characters]))
    text = text[-1] + text + text[-1]  # the highest id in both splits
    data = prepare(of(written(tmp_path / "text.txt", text)), tmp_path / "out")
    assert data.info["vocab_size"] == data.tokenizer.vocab_size == characters
    for split in ("train", "val"):
        assert data.shards[split][0].dtype == dtype
        assert data.tokens(split).max() == characters - 1
    assert "".join(decoded(open_dataset(tmp_path / "out"))) == text


def test_tokens_are_mapped_not_read(source: Path, tmp_path: Path) -> None:
    tokens = prepare(of(source), tmp_path / "out").shards["train"][0].memory_map()
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 0


def test_dataset_json_describes_the_text_the_split_and_the_files(source: Path, tmp_path: Path) -> None:
    made = prepare(of(source, "word:300", val_fraction=0.25), tmp_path / "out")
    info = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert info == made.info == open_dataset(tmp_path / "out").info
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    entries = info.pop("files")
    assert {name: (entry["bytes"], entry["sha256"]) for name, entry in entries.items()} == {
        name: (len(content), hashlib.sha256(content).hexdigest())
        for name, content in contents(tmp_path / "out").items()
        if name != "dataset.json"
    }
    assert info.pop("fingerprint") == made.fingerprint
    assert len(info.pop("cache_key")) == 24
    assert info == {
        "format": 2,
        "name": "text",
        "source": str(source),
        "text": {"sha256": digest, "bytes": len(TEXT.encode()), "characters": len(TEXT), "documents": 1, "left_out": 0},
        "tokenizer": "word:300",
        "vocab_size": made.tokenizer.vocab_size,
        "split": {"by": "position", "val_fraction": 0.25},
        "tokens": {split: len(made.tokens(split)) for split in ("train", "val")},
        "shards": {split: [f"{split}-00000.npy"] for split in ("train", "val")},
    }


def test_the_fingerprint_is_of_the_text_the_tokenizer_and_the_split_and_of_nothing_else(tmp_path: Path) -> None:
    numbers = iter(range(100))

    def fingerprint(name: str, text: str = TEXT, spec: str = "char", **how: Any) -> str:
        out = tmp_path / f"out {next(numbers)}"
        return prepare(of(written(tmp_path / name, text), spec, **how), out).fingerprint

    same = fingerprint("a.txt")
    assert same == fingerprint("a.txt") == fingerprint("b.md") == fingerprint("c.txt", "\ufeff" + TEXT)
    others = [
        fingerprint("a.txt", TEXT + "\n"),
        fingerprint("a.txt", TEXT.replace("fox", "xof")),  # the same characters, and as many of each
        fingerprint("a.txt", val_fraction=0.11),
        *(fingerprint("a.txt", spec=spec) for spec in ("byte", "word", "bpe:300")),
    ]
    assert len({same, *others}) == 1 + len(others)


# The cache


def test_a_text_is_prepared_once(source: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dataset(of(source))
    assert own_cache in first.folder.parents
    before = times(own_cache)
    monkeypatch.setattr(tokenizers, "build", None)
    second = dataset(of(source))
    assert times(own_cache) == before
    assert (second.folder, second.info, decoded(second)) == (first.folder, first.info, decoded(first))


def test_each_way_to_prepare_a_text_is_cached_by_itself(source: Path) -> None:
    ways = [of(source, spec) for spec in SPECS] + [of(source, val_fraction=0.2)]
    found = [dataset(way) for way in ways]
    assert len({data.folder for data in found}) == len(ways)
    assert [dataset(way).folder for way in ways] == [data.folder for data in found]
    assert dataset(of(source, "auto")).folder == found[0].folder  # a small text: characters


def test_another_text_in_the_same_file_is_another_dataset(source: Path) -> None:
    dataset(of(source))
    written(source, "other\n" * 50)
    assert decoded(dataset(of(source))) == ["other\n" * 45, "other\n" * 5]


def test_the_same_text_in_another_file_keeps_its_own_name(source: Path, tmp_path: Path) -> None:
    first = dataset(of(source))
    second = dataset(of(written(tmp_path / "another.txt")))
    assert second.folder == first.folder
    assert (second.name, second.info["source"]) == ("another", str(tmp_path / "another.txt"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


FILES = ["train-00000.npy", "val-00000.npy", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", [*FILES, "dataset.json"])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_cache_is_made_anew(source: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = dataset(of(source)).folder
    good = contents(folder)
    damage(folder / name)
    if damage is flip and name == "dataset.json":  # one letter of it may be of no account: take a whole key
        (folder / name).write_bytes(good[name].replace(b'"files"', b'"fives"'))
    data = dataset(of(source))
    assert "".join(decoded(data)) == TEXT
    assert contents(folder) == good
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_model_brings_its_tokenizer(source: Path, tmp_path: Path) -> None:
    theirs = tokenizers.build("bpe:280", "the rain in spain falls mainly in the plain " * 20)
    data = dataset(of(source, "char"), theirs)
    assert data.tokenizer.fingerprint == theirs.fingerprint
    assert "".join(decoded(data)) == TEXT
    prepare(of(source), tmp_path / "prepared")
    said = refusal(lambda: dataset(of(tmp_path / "prepared"), theirs))
    assert "another tokenizer than the model's" in said.message
    few = tokenizers.build("char", "abc")
    said = refusal(lambda: dataset(of(source), few))
    assert "text has unknown characters" in said.message


# prepare --out


def test_a_prepared_folder_is_a_source(source: Path, tmp_path: Path, own_cache: Path) -> None:
    made = prepare(of(source, "word"), tmp_path / "out")
    for tokenizer in ("auto", "word"):
        data = dataset(of(tmp_path / "out", tokenizer))
        assert (data.folder, data.info) == (tmp_path / "out", made.info)
    assert contents(own_cache) == {}
    said = refusal(lambda: dataset(of(tmp_path / "out", "char")))
    assert "was prepared with tokenizer word, not char" in said.message
    assert said.hint == "--tokenizer word"


@pytest.mark.parametrize("there", ["file", "folder", "prepared"])
def test_what_lies_where_one_prepares_to_stays(source: Path, tmp_path: Path, there: str) -> None:
    out = tmp_path / "out"
    match there:
        case "file":
            out.write_text("mine", encoding="utf-8")
        case "folder":
            out.mkdir()
            (out / ".hidden").write_text("mine", encoding="utf-8")
        case _:
            prepare(of(source), out)
    before = contents(tmp_path)
    assert refusal(lambda: prepare(of(source), out)).message == f"{out} already exists and is not empty"
    assert contents(tmp_path) == before


def test_an_empty_folder_holds_nothing(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert prepare(of(source), str(tmp_path / "out")).folder == tmp_path / "out"
    assert "".join(decoded(open_dataset(tmp_path / "out"))) == TEXT


@pytest.mark.parametrize("text", ["a", "ab", "abcdefghij"])
def test_a_text_too_short_to_split_is_told_and_nothing_is_written(tmp_path: Path, own_cache: Path, text: str) -> None:
    settings = of(written(tmp_path / "text.txt", text))
    for make in (lambda: prepare(settings, tmp_path / "out"), lambda: dataset(settings)):
        said = refusal(make)
        assert f"the text has {len(text)} characters, too few" in said.message
    assert contents(tmp_path) == {"text.txt": text.encode()}
    assert contents(own_cache) == {}
    prepare(of(written(tmp_path / "text.txt", "abcdefghijk")), tmp_path / "out")  # eleven are enough


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes: to whoever writes, a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_disk_that_fills_under_the_tokens_is_told_and_nothing_is_left(tmp_path: Path, own_cache: Path) -> None:
    settings = of(written(tmp_path / "text.txt", "abc\n" * 5_000))
    for make in (lambda: prepare(settings, tmp_path / "out"), lambda: dataset(settings)):
        with largest_file(20_000):
            assert "disk is full" in refusal(make).message
    assert contents(tmp_path) == {"text.txt": b"abc\n" * 5_000}
    assert contents(own_cache) == {}


# Opening


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_file_that_changed_since_is_refused(
    source: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    out = prepare(of(source), tmp_path / "out").folder
    damage(out / name)
    said = refusal(lambda: open_dataset(out))
    assert said.message.startswith(f"{out / name} is missing or was changed")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"files": {}}', b'{"vocab_size": 3}',
        b'{"files": {}, "vocab_size": "many"}', b'{"files": {}, "vocab_size": null}',
        b'{"files": [], "vocab_size": 3}',
        b'{"files": {"train.npy": 5}, "vocab_size": 3}',
        b'{"files": {"train.npy": {}}, "vocab_size": 3}',
    ],
)  # fmt: skip
def test_a_dataset_json_that_says_nothing_is_refused(source: Path, tmp_path: Path, content: bytes) -> None:
    out = prepare(of(source), tmp_path / "out").folder
    (out / "dataset.json").write_bytes(content)
    assert str(out) in refusal(lambda: open_dataset(out)).message


def test_a_folder_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    assert "is not a prepared dataset" in refusal(lambda: open_dataset(tmp_path)).message


def doctored(out: Path, name: str, content: bytes) -> None:
    """Put other bytes in a file of a prepared folder, and have its dataset.json agree."""
    (out / name).write_bytes(content)
    info = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    info["files"][name] = {"bytes": len(content), "sha256": files.sha256(out / name)}
    (out / "dataset.json").write_text(json.dumps(info), encoding="utf-8")


def saved(tokens: Any, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, tokens, allow_pickle=allow_pickle)
    return file.getvalue()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("beyond", [0, 1, 40_000])
def test_an_id_beyond_the_vocabulary_is_refused(source: Path, tmp_path: Path, split: str, beyond: int) -> None:
    data = prepare(of(source), tmp_path / "out")
    vocab_size = data.tokenizer.vocab_size
    tokens = np.array(data.tokens(split))
    tokens[-1] = vocab_size - 1
    doctored(data.folder, f"{split}-00000.npy", saved(tokens))
    open_dataset(data.folder)
    tokens[-1] = vocab_size + beyond
    doctored(data.folder, f"{split}-00000.npy", saved(tokens))
    said = refusal(lambda: open_dataset(data.folder))
    path = data.folder / f"{split}-00000.npy"
    assert said.message == f"{path} has id {vocab_size + beyond}, beyond the vocabulary of {vocab_size}"


class Bomb:
    """Unpickled, it ends the test."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no numpy file", saved([1, 2, 3] * 9)[:-1], pickle.dumps(Bomb()), saved([0.5, 1.5]), saved([[1], [2]]),
        saved(np.array([Bomb()], dtype=object), allow_pickle=True), saved([-1, 0]), saved(1), saved(["a"]),
    ],
    ids=["empty", "garbage", "cut", "pickle", "fractions", "two axes", "objects", "negative", "no axis", "text"],
)  # fmt: skip
def test_what_is_no_token_file_is_refused_and_never_unpickled(source: Path, tmp_path: Path, content: bytes) -> None:
    data = prepare(of(source), tmp_path / "out")
    doctored(data.folder, "val-00000.npy", content)
    assert "val-00000.npy" in refusal(lambda: open_dataset(data.folder)).message


# Finding the text of a run again


def again(data: Dataset, settings: DataSettings) -> Dataset:
    return reopen_dataset(settings, data.origin, data.tokenizer).result


def test_a_run_finds_its_text_in_the_cache_when_the_source_has_gone_or_changed(source: Path) -> None:
    data = dataset(of(source))
    written(source, "another text\n" * 50)
    assert again(data, of(source)).folder == data.folder
    source.unlink()
    assert "".join(decoded(again(data, of(source)))) == TEXT


@pytest.mark.parametrize("spec", SPECS)
def test_a_run_makes_its_text_again_when_the_cache_has_gone(source: Path, own_cache: Path, spec: str) -> None:
    data = dataset(of(source, spec))
    tokens = [ids(data, split) for split in ("train", "val")]
    shutil.rmtree(own_cache)
    found = again(data, of(source, spec))
    assert (found.fingerprint, found.tokenizer.fingerprint) == (data.fingerprint, data.tokenizer.fingerprint)
    assert [ids(found, split) for split in ("train", "val")] == tokens


@pytest.mark.parametrize("text", [TEXT + "x", "another text\n" * 50, TEXT.swapcase(), "\u0950" * 500])
@pytest.mark.parametrize("spec", ["char", "byte"])
def test_a_run_refuses_another_text(source: Path, own_cache: Path, spec: str, text: str) -> None:
    data = dataset(of(source, spec))
    shutil.rmtree(own_cache)
    written(source, text)
    said = refusal(lambda: again(data, of(source, spec)))
    assert said.message == f"{source} is not the text that this run was trained on"
    assert "--init" in str(said.hint)


def test_a_run_takes_its_text_from_another_place(source: Path, tmp_path: Path) -> None:
    data = dataset(of(source, "bpe:300"))
    moved = source.rename(tmp_path / "moved.txt")
    assert again(data, of(moved, "bpe:300")).fingerprint == data.fingerprint
    other = written(tmp_path / "other.txt", "another text\n" * 50)
    assert "other.txt is not the text" in refusal(lambda: again(data, of(other, "bpe:300"))).message


def test_a_run_finds_the_folder_that_was_prepared_for_it(source: Path, tmp_path: Path) -> None:
    data = prepare(of(source, "word"), tmp_path / "one")
    assert again(data, of(tmp_path / "one", "word")).folder == tmp_path / "one"
    prepare(of(written(tmp_path / "other.txt", "another text\n" * 50), "byte"), tmp_path / "two")
    assert "another tokenizer" in refusal(lambda: again(data, of(tmp_path / "two"))).message


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_run_does_not_take_a_damaged_cache(source: Path, damage: Callable[[Path], None]) -> None:
    data = dataset(of(source))
    damage(data.shards["train"][0].path)
    found = again(data, of(source))
    assert "".join(decoded(found)) == TEXT
    damage(found.shards["train"][0].path)
    source.unlink()
    assert str(source) in refusal(lambda: again(data, of(source))).message


def test_a_run_reads_its_text_from_standard_input_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DataSettings(source="-", tokenizer="char")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    data = dataset(settings)
    shutil.rmtree(own_cache)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert "".join(decoded(again(data, settings))) == TEXT


# Which tokenizer


def various(characters: int) -> str:
    """A text of so many different characters."""
    return "".join(map(chr, range(0x4E00, 0x4E00 + characters)))


def test_a_small_text_of_few_characters_gets_characters() -> None:
    assert choose_tokenizer(1, 1) == choose_tokenizer(768, 256) == choose_tokenizer(8 << 20, 1) == "char"
    assert choose_tokenizer(771, 257) == "bpe:1024"
    assert choose_tokenizer((8 << 20) + 1, 1) != "char"


@pytest.mark.parametrize("megabytes", [0.01, 0.3, 0.6, 1, 3, 7, 9, 40])
def test_other_texts_get_a_token_for_some_500_bytes(megabytes: float) -> None:
    length = int(megabytes * 1e6)
    kind, size = choose_tokenizer(length, 300).split(":")
    assert kind == "bpe"
    assert int(size).bit_count() == 1
    assert 1024 <= int(size) <= 32_768
    wanted = min(max(length / 500, 1024), 32_768)
    assert wanted <= int(size) <= 2 * wanted


@pytest.mark.parametrize("text", ["a" * 100, various(257) * 9])
def test_the_tokenizer_that_is_chosen_is_one_that_can_be_built(text: str) -> None:
    spec = choose_tokenizer(len(text.encode()), len(set(text)))
    assert tokenizers.build(spec, text).kind == spec.split(":")[0]


def test_auto_takes_the_choose_tokenizer_the_text_and_says_which(tmp_path: Path) -> None:
    few = dataset(of(written(tmp_path / "few.txt", "abc\n" * 100), "auto"))
    assert few.info["tokenizer"] == few.tokenizer.kind == "char"
    many = dataset(of(written(tmp_path / "many.txt", various(300) * 20), "auto"))
    assert (many.info["tokenizer"], many.tokenizer.kind) == ("bpe:1024", "bpe")
    assert "".join(decoded(many)) == various(300) * 20


def test_prepare_verify_reads_every_file_again(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepare(of(source), tmp_path / "out").folder
    assert cli.main(["prepare", str(out), "--verify"]) == 0
    assert str(out) in capsys.readouterr().out
    shard = out / "train-00000.npy"
    change_silently(shard)
    assert cli.main(["prepare", str(out), "--verify"]) == 2
    assert shard.name in capsys.readouterr().err


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
    out = prepare(of(source), tmp_path / "out").folder
    make_old(out)
    open_dataset(out)  # reads and verifies them, because their times changed
    change_silently(out / "train-00000.npy")
    open_dataset(out)  # trusts them: this is what makes opening fast
    with pytest.raises(OctavoError, match="train-00000"):
        open_dataset(out, verify=True)


def test_a_file_modified_within_two_seconds_is_read_again(source: Path, tmp_path: Path) -> None:
    out = prepare(of(source), tmp_path / "out").folder
    open_dataset(out)
    change_silently(out / "train-00000.npy")
    with pytest.raises(OctavoError, match="train-00000"):
        open_dataset(out)


def test_a_copy_of_a_dataset_is_verified_and_opens(source: Path, tmp_path: Path) -> None:
    out = prepare(of(source), tmp_path / "out").folder
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    assert open_dataset(copy).fingerprint == open_dataset(out).fingerprint
    make_old(copy)
    change_silently(copy / "val-00000.npy")
    with pytest.raises(OctavoError, match="val-00000"):
        open_dataset(copy)


def test_a_scanned_text_is_recognized_without_reading_it(source: Path, tmp_path: Path) -> None:
    os.utime(source, (1.7e9, 1.7e9))
    first = prepare_dataset(of(source)).result
    change_silently(source)
    assert list(prepare_dataset(of(source))) == []
    assert prepare_dataset(of(source)).result.fingerprint == first.fingerprint
    os.utime(source, (1.7e9, 1.7e9 + 1))
    assert prepare_dataset(of(source)).result.fingerprint != first.fingerprint
