"""Files become documents in chunks that can be tokenized separately; errors name the file and the line."""

import csv
import gzip
import io
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

from octavo.data.chunks import cut_text
from octavo.data.limits import Limits
from octavo.data.sources import open_source
from octavo.errors import OctavoError, install_command
from preparing import data_settings, error_of, read_corpus, read_source, source_error, write, write_jsonl

ROWS = ["First.\n", "Zwei – ünïcode.", " ", "line\nline", "नमस्ते \U0001f600"]
COMPRESSIONS = [(".gz", gzip.compress), (".zst", zstd.compress)]


def write_parquet(path: Path, rows: list[Any], field: str = "text") -> Path:
    pq.write_table(pa.table({"id": list(range(len(rows))), field: rows}), path)
    return path


def corpus_name(source: object) -> str:
    return open_source(data_settings(source)).name


# Chunks


@pytest.mark.parametrize("seed", range(20))
def test_chunks_end_before_white_space_that_follows_another_character(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choices(["a", "bc", " ", "  ", "\n", "\n\n", "\t", "\xa0", "漢", "."], k=300))
    blocks = [text[i : i + 7] for i in range(0, len(text), 7)]
    chunks = list(cut_text(blocks, Limits(chunk=12, forced_cut=1000)))
    assert "".join(chunks) == text
    assert len(chunks) > 10
    for before, after in itertools.pairwise(chunks):
        assert after[0] in " \n"
        assert not before[-1].isspace()


@pytest.mark.parametrize("weights", [(1, 1, 1), (30, 1, 1), (200, 1, 0)])
def test_chunks_are_those_of_a_plain_search(weights: tuple[int, int, int]) -> None:
    rng = random.Random(0)
    for chunk, forced_cut in itertools.product((1, 5, 300), (400, 1000)):
        text = "".join(rng.choices("a \t", weights, k=2000))
        cuts = [match.end() for match in re.finditer(r"\S(?=[ \n])", text)]
        expected, start = [], 0
        while len(text) - start >= chunk:
            earlier = [cut for cut in cuts if start < cut < start + chunk]
            later = [cut for cut in cuts if cut >= start + chunk]
            end = earlier[-1] if earlier else later[0] if later else start + forced_cut
            if end > len(text):
                break
            expected.append(text[start:end])
            start = end
        assert list(cut_text([text], Limits(chunk=chunk, forced_cut=forced_cut))) == [*expected, text[start:]]


@pytest.mark.parametrize("character", ["a", " ", "\n"])
def test_a_text_without_a_place_to_cut_is_cut_at_the_limit(character: str) -> None:
    chunks = list(cut_text([character * 70] * 20, Limits(chunk=10, forced_cut=100)))
    assert "".join(chunks) == character * 1400
    assert 10 < len(chunks) <= 1400 // 100 + 1


def test_a_large_file_is_one_document_in_several_chunks(tmp_path: Path) -> None:
    text = "Wörter in Zeilen.\n" * 200_000
    chunks = list(open_source(data_settings(write(tmp_path / "large.txt", text))).chunks())
    assert "".join(chunk.text for chunk in chunks) == text
    assert max(len(chunk.text) for chunk in chunks) <= Limits().chunk
    assert [chunk.ends_document for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize("offset", [70_000, (1 << 20) + 65_536, (1 << 20) + 65_535])
def test_a_character_may_span_two_read_blocks(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "text.txt"
    write(path, b"a" * (offset - 1) + "é".encode() + b"b\xff")
    assert source_error(path).message.endswith(f"byte offset {offset + 2}")  # counted from the beginning of the file
    write(path, b"a" * (offset - 1) + "é".encode())
    assert read_source(path) == ["a" * (offset - 1) + "é"]


# Formats


def test_each_row_is_a_document_unless_it_is_empty(tmp_path: Path) -> None:
    assert read_source(write_jsonl(tmp_path / "a.jsonl", ROWS)) == ROWS
    assert read_source(write_jsonl(tmp_path / "b.ndjson", ROWS, "body"), text_field="body") == ROWS
    assert read_source(write_parquet(tmp_path / "c.parquet", ROWS)) == ROWS
    assert read_source(write_parquet(tmp_path / "d.parquet", ROWS, "body"), text_field="body") == ROWS
    assert read_source(write_jsonl(tmp_path / "e.jsonl", ["", "x", ""])) == ["x"]


@pytest.mark.parametrize(("suffix", "compress"), [*COMPRESSIONS, (".GZ", gzip.compress)])
def test_a_compressed_file_is_read_like_its_content(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    text, rows = tmp_path / f"a.txt{suffix}", tmp_path / f"b.jsonl{suffix}"
    write(text, compress("Ein Text.\n".encode("utf-8-sig")))
    write(rows, compress(write_jsonl(tmp_path / "plain", ROWS).read_bytes()))
    assert (corpus_name(text), read_source(text)) == ("a", ["Ein Text.\n"])
    assert (corpus_name(rows), read_source(rows)) == ("b", ROWS)
    write(text, compress(b"\0binary"))
    assert f"{text} is binary" in source_error(text).message


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS)
@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"not compressed", lambda b: b[:40] + b"x" * 9])
def test_a_damaged_compressed_file_is_rejected(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes], damage: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path / f"a.txt{suffix}", damage(compress(random.Random(1).randbytes(999).hex().encode())))
    assert f"{path} is damaged" in source_error(path).message


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '{"text": "one"}\n'), ("a.json", '[{"text": "one"}]'), ("a.csv", "text\none\n")]
)
def test_rows_may_begin_with_a_byte_order_mark(tmp_path: Path, name: str, content: str) -> None:
    assert read_source(write(tmp_path / name, content.encode("utf-8-sig"))) == ["one"]


def test_a_folder_may_mix_formats(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "1.jsonl", ["a", "b"])
    write(tmp_path / "2.txt", "c\nd\n")
    write_parquet(tmp_path / "3.parquet", ["e"])
    write(tmp_path / "4.png", b"\x89PNG\0")
    write(tmp_path / "5.txt.gz", gzip.compress(b"f"))
    write(tmp_path / "6.tar.gz", gzip.compress(b"tar\0\0"))
    write(tmp_path / "7.json", '[{"text": "g"}]')
    write(tmp_path / "8.csv", "text\nh\n")
    corpus = open_source(data_settings(tmp_path))
    assert read_corpus(corpus) == ["a", "b", "c\nd\n", "e", "f", "g", "h"]
    assert {reason: count for reason, (count, _) in corpus.report.skipped.items()} == {"binary": 1, "damaged": 1}


# Rows that are rejected


def test_the_error_for_a_missing_field_names_the_line_and_its_fields(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ["x"] * 80_000)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[73_411] = '{"title": "t", "body": "b"}'
    write(path, "\n".join(lines) + "\n")
    error = source_error(path)
    for name in (f"{path}, line 73,412", "no field 'text'", "title, body"):
        assert name in error.message
    assert error.hint == "--text-field title"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('"text"', "is not a JSON object"),
        ("{}", "its fields: none"),
        ('{"text": null}', "that is null, not text"),
        ('{"text": 5}', "that is int, not text"),
        ('{"text": ["a"]}', "that is list, not text"),
        ('{"text": "\\ud83d"}', "an unpaired surrogate"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_an_invalid_line_is_rejected(tmp_path: Path, line: str, problem: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ["x"])
    write(path, path.read_text(encoding="utf-8") + f"\n{line}\n")  # a blank line counts
    message = source_error(path).message
    assert message.startswith(f"{path}, line 3")
    assert problem in message


def test_a_line_that_is_not_utf_8_is_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n')
    assert f"{path} is not utf-8" in source_error(path).message
    assert source_error(path).message.endswith("byte offset 24")
    assert read_source(path, encoding="latin-1") == ["a", "é"]
    assert read_source(path, errors="replace") == ["a", "\ufffd"]
    assert "byte order mark" in source_error(path, encoding="utf-16").message


# JSON arrays, CSV

JSON_FORMS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "one line": json.dumps,
    "indented": lambda rows: json.dumps(rows, indent=2),
    "compact": lambda rows: json.dumps(rows, separators=(",", ":")),
    "spaced": lambda rows: "\n [ " + " , ".join(json.dumps(row, ensure_ascii=False) for row in rows) + " ] \n",
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
}


@pytest.mark.parametrize("form", JSON_FORMS)
def test_a_json_file_of_objects_is_read_row_by_row(tmp_path: Path, form: str) -> None:
    texts = [*ROWS, 'q"uo\\ted, [{]}', "x" * 200_000, "é" * 1_100_000, "", *map(str, range(5_000))]
    rows = [{"id": number, "nested": {"a": [1, {}]}, "text": text} for number, text in enumerate(texts)]
    path = write(tmp_path / "rows.json", JSON_FORMS[form](rows))
    assert read_source(path) == [text for text in texts if text]
    error = source_error(path, text_field="body")
    assert "its fields: id, nested, text" in error.message
    assert error.hint == "--text-field text"


@pytest.mark.parametrize(
    "content", ['{"a": 1}', '{\n "a": 1\n}\n', "[1, 2]", "[]", '["text"]', "{", "[", '"text"', "5"]
)
def test_another_json_file_is_read_as_text(tmp_path: Path, content: str) -> None:
    assert read_source(write(tmp_path / "a.json", content)) == [content]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"text": "a"}', "element 2, is not JSON"),
        ('[{"text": "a"}, ', "element 2, is not JSON"),
        ('[{"text": "a"},]', "element 2, is not JSON"),
        ('[{"text": "a"} {"text": "b"}]', "element 2, is not JSON"),
        ('[{"text": "a"}] x', "element 2, is not JSON"),
        ('[{"text": "a', "element 1, is not JSON"),
        ('[{"text": "a"}, 5]', "element 2, is not a JSON object"),
        ('[{"text": "a"}, {"text": null}]', "element 2, has a field 'text' that is null"),
        ('[{"text": "a\\ud83d"}]', "unpaired surrogate"),
        ("[{" + '"a":[' * 100_000, "element 1, is not JSON"),
    ],
)
def test_a_damaged_json_array_is_rejected(tmp_path: Path, content: str, problem: str) -> None:
    path = write(tmp_path / "rows.json", content)
    error = source_error(path)
    assert error.message.startswith(f"{path}, element")
    assert problem in error.message


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_csv_file_has_one_document_in_each_row(tmp_path: Path, delimiter: str, line_end: str) -> None:
    texts = [*ROWS, 'a "quoted" word', "a,b;c\td", "lines\r\nof text\n\n", "x" * 300_000]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
    writer.writerows([["id", "text", "more"], *([number, text, ""] for number, text in enumerate(texts))])
    for name in ("a.csv", "a.tsv"):
        path = write(tmp_path / name, file.getvalue() + line_end)
        assert read_source(path) == texts
    assert "its fields: id, text, more" in source_error(path, text_field="body").message
    assert read_source(write(tmp_path / "a.csv.gz", gzip.compress(file.getvalue().encode()))) == texts


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a,text\n1,b\n1\n", "line 3, has 1 fields, and line 1 names 2"),
        ("a,text\n1,b,c\n", "line 2, has 3 fields"),
        ('a,text\n1,"b\n', "is not CSV"),
        ('a,text\n1,"b"c\n', "line 2, is not CSV"),
        ("1,b\n", "line 1 has no field 'text'; its fields: 1, b"),
    ],
)
def test_a_damaged_csv_file_is_rejected(tmp_path: Path, content: str, problem: str) -> None:
    path = write(tmp_path / "a.csv", content)
    message = source_error(path).message
    assert message.startswith(str(path))
    assert problem in message


# Files that would fill the memory

SMALL = Limits(chunk=1 << 16, row=1 << 20, decompressed=1 << 22)
LONG = "x" * (SMALL.row + 1)


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("a.jsonl", '{"text": "', '"}\n'),
        ("a.jsonl", '{"text": "a"}\n{"b": "', '", "text": "a"}'),
        ("a.json", '[{"text": "', '"}]'),
        ("a.json", '[{"text": "a"}, {"b": "', '", "text": "a"}]'),
        ("a.csv", "text\n", "\n"),
        ("a.csv", 'text\n"', '\n"\n'),
        ("a.csv", 'text\n"' + "\n" * SMALL.row, '"\n'),
    ],
)
def test_a_row_that_would_not_fit_in_memory_is_rejected(tmp_path: Path, name: str, start: str, end: str) -> None:
    for suffix, compress in [("", bytes), *COMPRESSIONS]:
        path = write(tmp_path / f"{name}{suffix}", compress(f"{start}{LONG}{end}".encode()))
        error = error_of(lambda path=path: read_corpus(open_source(data_settings(path), SMALL)))
        assert error.message.startswith(str(path))
        assert "1,048,576 characters" in error.message


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS)
@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_a_decompression_bomb_is_rejected(
    tmp_path: Path, name: str, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path / f"{name}{suffix}", compress(b"text\n" * (SMALL.decompressed // 4)))
    error = error_of(lambda: read_corpus(open_source(data_settings(path), SMALL)))
    assert f"{path} decompresses to more than 250 times its size" in error.message
    ordinary = random.Random(1).randbytes(SMALL.decompressed // 2).hex().encode()
    write(path, compress(ordinary))
    if name == "a.txt":
        assert read_corpus(open_source(data_settings(path), SMALL)) == [ordinary.decode()]


def test_a_parquet_file_that_would_fill_the_memory_is_rejected(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [LONG] * 64)
    assert "row 1, has more than" in error_of(lambda: read_corpus(open_source(data_settings(path), SMALL))).message
    equal = write_parquet(tmp_path / "b.parquet", [LONG[1:]] * 64)
    assert len(read_corpus(open_source(data_settings(equal), SMALL))) == 64
    pq.write_table(pa.table({"text": ["x" * (1 << 23)]}), path, compression="zstd")
    assert "decompresses to more" in error_of(lambda: read_corpus(open_source(data_settings(path), SMALL))).message


def test_unpaired_surrogates_in_rows_are_replaced_or_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a\\ud83d\\ude00b\\udc00c"}\n')
    assert read_source(path, errors="replace") == ["a\U0001f600b\ufffdc"]
    assert read_source(path, errors="ignore") == ["a\U0001f600bc"]


def test_a_damaged_parquet_file_or_one_without_the_field_is_rejected(tmp_path: Path) -> None:
    intact = write_parquet(tmp_path / "a.parquet", ROWS, "body")
    message = source_error(intact).message
    for name in (str(intact), "no field 'text'", "id, body"):
        assert name in message
    with_null = write_parquet(tmp_path / "b.parquet", ["x", None])
    message = source_error(with_null).message
    for name in (f"{with_null}, row 2", "'text'", "null"):
        assert name in message
    damaged = write(tmp_path / "c.parquet", intact.read_bytes()[:-20])
    assert f"{damaged} is not a Parquet file" in source_error(damaged).message


@pytest.mark.parametrize("bits", [16, 255])
def test_a_parquet_file_with_a_damaged_byte_in_its_footer_is_read_or_rejected(bits: int, tmp_path: Path) -> None:
    content = write_parquet(tmp_path / "a.parquet", ROWS).read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    rejected = 0
    for i in range(footer, len(content)):
        damaged = write(tmp_path / "b.parquet", content[:i] + bytes([content[i] ^ bits]) + content[i + 1 :])
        try:
            read_source(damaged)
        except OctavoError:
            rejected += 1
    assert rejected > 50


@pytest.mark.parametrize(
    ("name", "modules", "extra"),
    [
        ("a.parquet", ["pyarrow", "pyarrow.parquet"], "parquet"),
        ("a.txt.zst", ["backports.zstd", "backports", "compression.zstd"], "zstd"),
        ("hf:some/thing", ["datasets"], "hf"),
    ],
)
def test_the_hint_for_a_missing_package_is_how_to_install_it(
    tmp_path: Path, name: str, modules: list[str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.parquet", b"PAR1")
    write(tmp_path / "a.txt.zst", zstd.compress(b"a"))
    assert source_error(name).hint == install_command(extra)


# Hugging Face datasets


def test_a_local_dataset_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "stories"
    (folder / "data").mkdir(parents=True)
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", ROWS)
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", ["held out"])
    assert read_source(f"hf:{folder}") == ROWS
    assert read_source(f"hf:{folder}@validation") == ["held out"]
    assert corpus_name(f"hf:{folder}") == "stories"
    message = source_error(f"hf:{folder}", text_field="body").message
    assert "no field 'body'" in message
    assert "id, text" in message
    assert "split nothing, cannot be read" in source_error(f"hf:{folder}@nothing").message


def test_a_dataset_of_the_hub_is_downloaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, str]]:
        calls.append((name, config, split, streaming))
        return [{"story": row} for row in ROWS]

    monkeypatch.setattr(datasets, "load_dataset", load)
    for _ in range(2):
        assert read_source("hf:some/stories:small@test", text_field="story") == ROWS
    assert calls == [("some/stories", "small", "test", True)]
    assert corpus_name("hf:some/stories:small@test") == "stories"


def test_datasets_of_another_name_config_split_or_field_are_cached_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, str]]:
        return [{"text": f"{name} {config} {split}", "body": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    expected = {
        "hf:o/n": ["o/n None train"],
        "hf:o/n:test": ["o/n test train"],
        "hf:o/n@test": ["o/n None test"],
        "hf:o/n--test": ["o/n--test None train"],
    }
    for _ in range(2):
        assert {source: read_source(source) for source in expected} == expected
    assert read_source("hf:o/n", text_field="body") == ["b"]


def test_a_failed_download_is_reported_and_not_cached(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*_: object, **__: object) -> None:
        raise ConnectionError("no network here")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert "cannot be read: no network here" in source_error("hf:some/thing").message
    assert not list(own_cache.rglob("*.jsonl"))


def test_an_invalid_dataset_name_is_rejected() -> None:
    assert "'hf:no name'" in source_error("hf:no name").message
