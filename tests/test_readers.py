"""What files hold: documents in pieces that can be tokenized alone, and errors that name the line."""

import gzip
import itertools
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from octavo.data.limits import Limits
from octavo.data.readers import cut_text
from octavo.data.sources import open_source
from octavo.errors import OctavoError
from octavo.settings import DataSettings

ROWS = ["First.\n", "Zwei – ünïcode.", " ", "line\nline", "नमस्ते \U0001f600"]


def read(source: object, **how: str) -> list[str]:
    """The documents of a source, whole."""
    found = [""]
    for text, ends in open_source(DataSettings(source=str(source), **how)).chunks():
        found[-1] += text
        if ends:
            found.append("")
    assert found.pop() == ""
    return found


def refusal(source: object, **how: str) -> OctavoError:
    with pytest.raises(OctavoError) as caught:
        read(source, **how)
    assert caught.value.hint
    return caught.value


def jsonl(path: Path, rows: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, field: row}) + "\n" for i, row in enumerate(rows)), encoding="utf-8")
    return path


def parquet(path: Path, rows: list[Any], field: str = "text") -> Path:
    pq.write_table(pa.table({"id": list(range(len(rows))), field: rows}), path)
    return path


# Pieces


@pytest.mark.parametrize("seed", range(20))
def test_chunks_end_where_white_space_follows_other_characters(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choices(["a", "bc", " ", "  ", "\n", "\n\n", "\t", "\xa0", "漢", "."], k=300))
    blocks = [text[i : i + 7] for i in range(0, len(text), 7)]
    pieces = list(cut_text(blocks, Limits(chunk=12, forced_cut=1000)))
    assert "".join(pieces) == text
    assert len(pieces) > 10
    for before, after in itertools.pairwise(pieces):
        assert after[0] in " \n"
        assert not before[-1].isspace()


@pytest.mark.parametrize("letters", ["a", " ", "\n"])
def test_a_text_with_nowhere_to_cut_is_cut_at_the_limit(letters: str) -> None:
    pieces = list(cut_text([letters * 70] * 20, Limits(chunk=10, forced_cut=100)))
    assert "".join(pieces) == letters * 1400
    assert 10 < len(pieces) <= 1400 // 100 + 1


def test_a_large_file_comes_in_pieces_and_is_one_document(tmp_path: Path) -> None:
    text = "Wörter in Zeilen.\n" * 200_000
    (tmp_path / "large.txt").write_text(text, encoding="utf-8")
    pieces = list(open_source(DataSettings(source=str(tmp_path / "large.txt"))).chunks())
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) <= Limits().chunk
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("where", [70_000, (1 << 20) + 65_536, (1 << 20) + 65_535])
def test_a_character_across_two_blocks_is_one_and_an_offset_counts_from_the_files_beginning(
    tmp_path: Path, where: int
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a" * (where - 1) + "é".encode() + b"b\xff")
    assert f"at byte offset {where + 2}" in refusal(path).message
    path.write_bytes(b"a" * (where - 1) + "é".encode())
    assert read(path) == ["a" * (where - 1) + "é"]


# Formats


def test_rows_are_documents(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path / "a.jsonl", ROWS)) == ROWS
    assert read(jsonl(tmp_path / "b.ndjson", ROWS, "body"), text_field="body") == ROWS
    assert read(parquet(tmp_path / "c.parquet", ROWS)) == ROWS
    assert read(parquet(tmp_path / "d.parquet", ROWS, "body"), text_field="body") == ROWS
    assert read(jsonl(tmp_path / "e.jsonl", ["", "x", ""])) == ["x"]


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstd.compress), (".GZ", gzip.compress)])
def test_what_is_packed_is_read_as_what_it_packs(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    text, rows = tmp_path / f"a.txt{ending}", tmp_path / f"b.jsonl{ending}"
    text.write_bytes(pack("Ein Text.\n".encode("utf-8-sig")))
    rows.write_bytes(pack(jsonl(tmp_path / "plain", ROWS).read_bytes()))
    assert read(text) == ["Ein Text.\n"]
    assert read(rows) == ROWS
    assert [open_source(DataSettings(source=str(path))).name for path in (text, rows)] == ["a", "b"]
    text.write_bytes(pack(b"\0binary"))
    assert "is binary" in refusal(text).message


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstd.compress)])
@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"no packed file", lambda b: b[:40] + b"x" * 9])
def test_a_packed_file_that_is_damaged_is_told(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes], damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(damage(pack(random.Random(1).randbytes(999).hex().encode())))
    assert refusal(path).message.startswith(f"{path} is damaged")


def test_a_folder_may_hold_all_kinds(tmp_path: Path) -> None:
    jsonl(tmp_path / "1.jsonl", ["a", "b"])
    (tmp_path / "2.txt").write_text("c\nd\n", encoding="utf-8")
    parquet(tmp_path / "3.parquet", ["e"])
    (tmp_path / "4.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "5.txt.gz").write_bytes(gzip.compress(b"f"))
    (tmp_path / "6.tar.gz").write_bytes(gzip.compress(b"tar\0\0"))
    assert read(tmp_path) == ["a", "b", "c\nd\n", "e", "f"]


# What is wrong


def test_a_field_that_is_missing_in_a_line_is_told_with_file_and_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ["x"] * 80_000)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[73_411] = '{"title": "t", "body": "b"}'
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = refusal(path)
    assert said.message == f"{path}, line 73,412 has no field 'text'; its fields: title, body"
    assert said.hint == "--text-field title"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "is not JSON"), ("[1]", "is not a JSON object"), ('"text"', "is not a JSON object"),
        ("{}", "its fields: none"),
        ('{"text": null}', "that is null, not text"), ('{"text": 5}', "that is int, not text"),
        ('{"text": ["a"]}', "that is list, not text"), ('{"text": "\\ud83d"}', "an unpaired surrogate"),
        ("[" * 100_000, "is not JSON"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_row_is_told(tmp_path: Path, line: str, what: str) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ["x"])
    path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")  # a blank line counts
    said = refusal(path).message
    assert said.startswith(f"{path}, line 3")
    assert what in said


def test_bytes_that_are_no_utf_8_in_a_line_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    assert f"{path}, line 2, is not utf-8" in refusal(path).message
    assert read(path, encoding="latin-1") == ["a", "é"]
    assert read(path, errors="replace") == ["a", "\ufffd"]
    assert "cannot be read as utf-16" in refusal(path, encoding="utf-16").message


def test_halves_of_surrogate_pairs_go_as_errors_says(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud83d\\ude00b\\udc00c"}\n', encoding="utf-8")
    assert read(path, errors="replace") == ["a\U0001f600b\ufffdc"]
    assert read(path, errors="ignore") == ["a\U0001f600bc"]


def test_a_table_that_is_none_or_lacks_the_field_is_told(tmp_path: Path) -> None:
    good = parquet(tmp_path / "a.parquet", ROWS, "body")
    assert refusal(good).message == f"{good} has no field 'text'; its fields: id, body"
    holes = parquet(tmp_path / "b.parquet", ["x", None])
    assert refusal(holes).message == f"{holes}, row 2, has a field 'text' that is null, not text"
    (tmp_path / "c.parquet").write_bytes(good.read_bytes()[:-20])
    assert "is not a Parquet file, or damaged" in refusal(tmp_path / "c.parquet").message


@pytest.mark.parametrize(
    ("name", "modules", "extra"),
    [
        ("a.parquet", ["pyarrow", "pyarrow.parquet"], "parquet"),
        ("a.txt.zst", ["backports.zstd", "backports", "compression.zstd"], "zstd"),
        ("hf:some/thing", ["datasets"], "hf"),
    ],
)
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, name: str, modules: list[str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.txt.zst").write_bytes(zstd.compress(b"a"))
    assert refusal(name if name.startswith("hf:") else tmp_path / name).hint == f"pip install 'octavo[{extra}]'"


# Datasets


def test_a_local_dataset_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "stories"
    (folder / "data").mkdir(parents=True)
    parquet(folder / "data" / "train-00000-of-00001.parquet", ROWS)
    parquet(folder / "data" / "validation-00000-of-00001.parquet", ["held out"])
    assert read(f"hf:{folder}") == ROWS
    assert read(f"hf:{folder}@validation") == ["held out"]
    assert open_source(DataSettings(source=f"hf:{folder}")).name == "stories"
    assert "has no field 'body'; its fields: id, text" in refusal(f"hf:{folder}", text_field="body").message
    assert "split nothing, cannot be read" in refusal(f"hf:{folder}@nothing").message


def test_a_dataset_of_the_hub_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((name, config, split, streaming))
        return [{"story": row} for row in ROWS]

    monkeypatch.setattr(datasets, "load_dataset", load)
    for _ in range(2):
        assert read("hf:some/stories:small@test", text_field="story") == ROWS
    assert asked == [("some/stories", "small", "test", True)]
    assert open_source(DataSettings(source="hf:some/stories:small@test")).name == "stories"


def test_datasets_that_differ_in_anything_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, str]]:
        return [{"text": f"{name} {config} {split}", "body": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    sources = ["hf:o/n", "hf:o/n:test", "hf:o/n@test", "hf:o/n--test"]
    for _ in range(2):
        assert [read(source) for source in sources] == [
            ["o/n None train"], ["o/n test train"], ["o/n None test"], ["o/n--test None train"]
        ]  # fmt: skip
    assert read("hf:o/n", text_field="body") == ["b"]


def test_a_hub_that_cannot_be_reached_is_told_and_nothing_is_kept(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def load(*_: object, **__: object) -> None:
        raise ConnectionError("no network here")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert "split train, cannot be read: no network here" in refusal("hf:some/thing").message
    assert not list(own_cache.rglob("*.jsonl"))
    assert re.match("'hf:no name' is neither", refusal("hf:no name").message)
