"""Sources: files, folders, globs, pipes and built-in corpora are read in a fixed order, and bad ones are rejected."""

import hashlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from octavo import progress
from octavo.data import readers
from octavo.data.prepare import prepare_dataset
from octavo.data.sources import Corpus, open_source
from octavo.errors import OctavoWarning
from preparing import data_settings, read_corpus, read_source, source_error, write

BOM = b"\xef\xbb\xbf"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff"


def open_corpus(source: object) -> Corpus:
    return open_source(data_settings(source))


def sha256(corpus: Corpus) -> str:
    (text,) = read_corpus(corpus)
    return hashlib.sha256(text.encode()).hexdigest()


# Files


def test_a_file_is_decoded_without_changes(tmp_path: Path) -> None:
    """Line ends of any kind and characters of every Unicode plane are kept."""
    signs = "ab \n\r\t\x0b\x0c\x85\u2028éπ漢\u0628\u0915\u094d\U0001f600\ufeff"
    for seed in range(50):
        text = "x" + "".join(random.Random(seed).choices(signs, k=40))
        corpus = open_corpus(write(tmp_path / "some.txt", text))
        assert corpus.name == "some"
        assert [(chunk.text, chunk.ends_document) for chunk in corpus.chunks()] == [(text, True)]


@pytest.mark.parametrize("name", ["architecture.ar.md", "embeddings.hi.md", "embeddings.de.md"])
def test_text_in_other_scripts_is_read(shared: Path, name: str) -> None:
    path = shared / "notes" / name
    (text,) = read_source(path)
    assert text.encode() == path.read_bytes().removeprefix(BOM)


def test_the_files_of_a_folder_are_sorted_by_the_parts_of_their_paths(tmp_path: Path) -> None:
    names = ["b.txt", "a.txt", "a/z.md", "a/b/c.rst", "B.txt", "a b/c", "é.txt", "LICENSE"]
    expected = ["B.txt", "LICENSE", "a/b/c.rst", "a/z.md", "a b/c", "a.txt", "b.txt", "é.txt"]
    for seed in range(3):
        folder = tmp_path / f"order {seed}"
        for name in random.Random(seed).sample(names, len(names)):
            write(folder / name, name)
        assert read_source(folder) == read_source(folder / "**") == expected


def test_each_file_is_a_document_unless_it_is_empty(tmp_path: Path) -> None:
    for name, text in {"1": "one", "2": "two\n", "3": "", "4": "four\r\n", "5": "\n", "6": "six"}.items():
        write(tmp_path / name, text)
    assert read_source(tmp_path) == ["one", "two\n", "four\r\n", "\n", "six"]


def test_hidden_and_binary_files_of_a_folder_are_skipped(tmp_path: Path) -> None:
    for name in (".hidden.txt", ".git/config", "notes/.cache/x.txt"):
        write(tmp_path / name, "hidden")
    write(tmp_path / "picture.png", PNG)
    write(tmp_path / "README.md", "read me\n")
    write(tmp_path / "notes/notes.txt", "notes\n")
    for source in (tmp_path, tmp_path / "**"):
        corpus = open_corpus(source)
        assert read_corpus(corpus) == ["read me\n", "notes\n"]
        assert corpus.report.skipped == {"binary": (1, str(tmp_path / "picture.png"))}


def test_binary_files_are_reported_once_however_often_the_corpus_is_read(tmp_path: Path) -> None:
    write(tmp_path / "picture.png", PNG)
    write(tmp_path / "text.txt", "text\n" * 100)
    os.utime(tmp_path / "text.txt", (1, 1))
    os.utime(tmp_path / "picture.png", (1, 1))
    for _ in range(2):  # the second time from the record of the scan
        with pytest.warns(OctavoWarning) as caught:
            prepare_dataset(data_settings(tmp_path)).result  # noqa: B018
        assert [str(warning.message).partition(": ")[2] for warning in caught] == [
            f"1 file read (1 text); 1 skipped: 1 binary ({tmp_path / 'picture.png'})"
        ]


def test_a_hidden_folder_can_be_a_source(tmp_path: Path) -> None:
    assert read_source(write(tmp_path / ".notes/a.txt", "a").parent) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_linked_files_of_a_folder_are_read_and_linked_folders_are_not(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    (tmp_path / "cycle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "broken.txt").symlink_to(tmp_path / "missing")
    (tmp_path / "linked.txt").symlink_to(tmp_path / "a.txt")
    assert read_source(tmp_path) == ["a", "a"]


def test_the_matches_of_a_glob_are_sorted(tmp_path: Path) -> None:
    for name in ("b/2.md", "b/1.md", "a.md", "a.txt", "b/deep/3.md"):
        write(tmp_path / name, name)
    assert read_source(tmp_path / "*.md") == ["a.md"]
    assert read_source(tmp_path / "*/*.md") == ["b/1.md", "b/2.md"]
    assert read_source(tmp_path / "**/*.md") == ["a.md", "b/1.md", "b/2.md", "b/deep/3.md"]


def test_a_file_whose_name_looks_like_a_glob_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a1.txt", "another")
    assert read_source(write(tmp_path / "a[1].txt", "this")) == ["this"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("my notes/first draft.txt", "first-draft"),
        ("my notes", "my-notes"),
        ("my notes/", "my-notes"),
        ("my notes/*.txt", "my-notes"),
        ("my notes/**/*.txt", "my-notes"),
        ("my notes/*/*", "my-notes"),
        ("my notes/deep/../مقدمة.v2.txt", "مقدمة.v2"),
        ("my notes/[x]: ?", "x"),
        ("my notes/-.-.txt", "text"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
def test_the_name_of_a_corpus_is_a_valid_folder_name(tmp_path: Path, source: str, name: str) -> None:
    for file in ("first draft.txt", "deep/a.txt", "مقدمة.v2.txt", "[x]: ?", "-.-.txt"):
        write(tmp_path / "my notes" / file, "text")
    assert open_corpus(f"{tmp_path}/{source}").name == name


def test_a_corpus_in_the_working_directory_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path / "poems/a.txt", "a").parent)
    assert open_corpus(".").name == "poems"
    assert open_corpus("*.txt").name == "poems"
    assert open_corpus("a.txt").name == "a"


def test_a_built_in_name_takes_precedence_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "pydocs", "a file")
    monkeypatch.chdir(tmp_path)
    assert len(read_source("pydocs")[0]) > 100_000
    assert read_source("./pydocs") == ["a file"]


def test_standard_input_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BOM + b"piped \r\n")))
    corpus = open_corpus("-")
    assert (corpus.name, read_corpus(corpus)) == ("stdin", ["piped \r\n"])


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "empty"), (BOM, "empty"), (PNG, "binary"), (b"ab\xff", "not utf-8")]
)
def test_standard_input_without_text_is_rejected(content: bytes, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert source_error("-").message.startswith(f"standard input is {problem}")


def test_a_process_without_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is empty" in source_error("-").message


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_the_text_of_a_named_pipe_can_be_read_repeatedly(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen([sys.executable, "-c", f"open({str(tmp_path / 'pipe')!r}, 'w').write('piped')"]):
        corpus = open_corpus(tmp_path / "pipe")
    assert read_corpus(corpus) == read_corpus(corpus) == ["piped"]


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "UTF8"])
def test_one_byte_order_mark_is_removed_from_each_file(tmp_path: Path, encoding: str) -> None:
    write(tmp_path / "1.txt", BOM + "wörd".encode())
    write(tmp_path / "2.txt", BOM + BOM + b"x")
    write(tmp_path / "3.txt", b"without")
    assert read_source(tmp_path, encoding=encoding) == ["wörd", "\ufeffx", "without"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("before", [b"", "naïve ".encode(), b"a" * 70_000, BOM])
def test_an_invalid_byte_is_reported_with_its_offset(tmp_path: Path, before: bytes, encoding: str) -> None:
    path = write(tmp_path / "latin.txt", before + b"\xe9t\xe9")
    error = source_error(path, encoding=encoding)
    assert f"{path} is not utf-8" in error.message
    assert error.message.endswith(f"byte offset {len(before)}")
    assert "--encoding latin-1" in str(error.hint)
    assert "--errors replace" in str(error.hint)


def test_encoding_and_errors_are_passed_to_the_decoder(tmp_path: Path) -> None:
    path = write(tmp_path / "latin.txt", b"\xe9t\xe9")
    assert read_source(path, encoding="latin-1") == ["été"]
    assert read_source(path, errors="replace") == ["\ufffdt\ufffd"]
    assert read_source(path, errors="ignore") == ["t"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252", "utf_8"])
def test_any_encoding_round_trips(tmp_path: Path, encoding: str) -> None:
    assert read_source(write(tmp_path / "a.txt", "naïve\r\n".encode(encoding)), encoding=encoding) == ["naïve\r\n"]


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("settings", [{}, {"errors": "replace"}, {"encoding": "latin-1"}, {"encoding": "utf-16"}])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_decides_the_encoding(
    tmp_path: Path, codec: str, settings: dict[str, str], suffix: str
) -> None:
    """PowerShell writes UTF-16 when output is redirected to a file, and Excel UTF-8 with a mark."""
    contents = {
        ".txt": "naïve 漢字\r\n",
        ".jsonl": '{"text": "naïve 漢字\\r\\n"}\r\n',
        ".json": '[{"text": "naïve 漢字\\r\\n"}]\r\n',
        ".csv": 'text\r\n"naïve 漢字\r\n"\r\n',
    }
    path = write(tmp_path / f"from-windows{suffix}", f"\ufeff{contents[suffix]}".encode(codec))
    assert read_source(path, **settings) == read_source(tmp_path, **settings) == ["naïve 漢字\r\n"]


# NUL characters


@pytest.mark.parametrize("position", [0, 1, 65_535, 65_536, 1_200_000])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_nul_in_a_text_is_treated_alike_wherever_it_is(
    tmp_path: Path, position: int, encoding: str, in_folder: bool
) -> None:
    before, after = "é" * position, "b" * 100
    path = write(tmp_path / "text.txt", f"{before}\0{after}".encode(encoding))
    source = tmp_path if in_folder else path
    error = source_error(source, encoding=encoding)
    assert f"{path} has a NUL character at byte offset {len(before.encode(encoding))}" in error.message
    for way_out in ("--errors ignore", "tokenizer byte"):
        assert way_out in str(error.hint)
    assert read_source(source, encoding=encoding, errors="ignore") == [before + after]
    assert read_source(source, encoding=encoding, errors="replace") == [f"{before}\ufffd{after}"]
    assert read_source(source, encoding=encoding, tokenizer="byte") == [f"{before}\0{after}"]


def test_text_between_nul_characters_is_binary_unless_the_tokenizer_is_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "names.txt", "a.txt\0b.txt\0")
    assert "byte offset 5" in source_error(path).message
    assert "tokenizer byte" in str(source_error(path).hint)
    assert read_source(path, tokenizer="byte") == ["a.txt\0b.txt\0"]
    assert "is binary" in source_error(write(tmp_path / "picture.png", PNG), tokenizer="byte").message


def test_truncated_utf_16_is_rejected(tmp_path: Path) -> None:
    message = source_error(write(tmp_path / "odd.txt", b"\xff\xfea\0b"), encoding="utf-16").message
    assert "is not utf-16" in message
    assert "byte offset 4" in message


@pytest.mark.parametrize("encoding", ["utf-99", "", "hex", "undefined", "a\0b"])
def test_an_unknown_encoding_is_rejected(tmp_path: Path, encoding: str) -> None:
    for source in (write(tmp_path / "a.txt", "a"), "pydocs"):
        message = source_error(source, encoding=encoding).message
        assert "no text encoding" in message
        assert repr(encoding) in message


def test_a_codec_with_unusual_exceptions_gives_no_traceback(tmp_path: Path) -> None:
    assert "cannot be read" in source_error(write(tmp_path / "a.txt", b"+2AA-"), encoding="utf-7").message
    assert "a.txt" in source_error(write(tmp_path / "a.txt", b"xn--\xff"), encoding="idna").message


def test_an_unknown_value_of_errors_is_rejected(tmp_path: Path) -> None:
    assert "'surrogateescape'" in source_error(write(tmp_path / "a.txt", "a"), errors="surrogateescape").message


# Sources that are rejected


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    error = source_error(tmp_path / "missing.txt")
    assert "no file or folder" in error.message
    assert repr(str(tmp_path / "missing.txt")) in error.message
    assert "pydocs or shakespeare" in str(error.hint)
    assert "no file or folder ''" in source_error("").message


@pytest.mark.parametrize(
    ("misspelled", "nearest"),
    [("shakespear", "shakespeare"), ("SHAKESPEARE", "shakespeare"), ("pydoc", "pydocs")],
)
def test_the_hint_for_a_misspelled_name_is_the_nearest_one(
    misspelled: str, nearest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_error(misspelled).hint == nearest


@pytest.mark.parametrize("content", [b"", BOM])
def test_a_file_without_characters_is_empty(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "empty.txt", content)
    assert f"{path} is empty" in source_error(path).message


def test_a_file_of_white_space_is_read(tmp_path: Path) -> None:
    assert read_source(write(tmp_path / "blank.txt", " \n")) == [" \n"]


def test_a_binary_file_is_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "picture.png", PNG)
    for errors in ("strict", "replace"):
        assert f"{path} is binary" in source_error(path, errors=errors).message


def test_a_folder_without_text_is_rejected(tmp_path: Path) -> None:
    message = source_error(tmp_path).message
    assert f"{tmp_path} has no text" in message
    assert "0 files read" in message
    write(tmp_path / "picture.png", PNG)
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / ".hidden", "text")
    assert "2 skipped: 1 empty" in source_error(tmp_path).message
    assert "1 skipped: 1 binary" in source_error(tmp_path / "*.png").message


def test_an_existing_path_wins_over_a_pattern(tmp_path: Path) -> None:
    for name in ("gl[0]/a[1].txt", "gl[0]/a1.txt", "gl0/b.txt", "deep/gl[0]/c.txt", "deep/gl0/d.txt", "star*/e.txt"):
        write(tmp_path / name, name)
    expected = {
        "gl[0]/*.txt": ["gl[0]/a1.txt", "gl[0]/a[1].txt"],
        "gl[0]": ["gl[0]/a1.txt", "gl[0]/a[1].txt"],
        "gl[0]/a[1].txt": ["gl[0]/a[1].txt"],
        "gl[0-9]/*": ["gl0/b.txt"],
        "*/gl[0]/*": ["deep/gl[0]/c.txt"],
        "**/gl[0]/*": ["deep/gl[0]/c.txt", "gl[0]/a1.txt", "gl[0]/a[1].txt"],
        "star*/*": ["star*/e.txt"],
    }
    assert {pattern: read_source(tmp_path / pattern) for pattern in expected} == expected
    assert open_corpus(tmp_path / "gl[0]/*.txt").name == "gl-0"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_that_lead_back_do_not_repeat_a_text(tmp_path: Path) -> None:
    write(tmp_path / "a/text.txt", "text")
    (tmp_path / "a/cycle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a/other").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for pattern in ("", "**", "**/*.txt", "**/**/*.txt"):
        assert read_source(tmp_path / pattern) == ["text"]
    assert read_source(tmp_path / "a/other/*.txt") == ["text"]  # a link that is named is followed
    assert "symbolic links" in source_error(tmp_path / "loop").message


@pytest.mark.parametrize("pattern", ["*.nothing", "missing/**", "only-folder*", "[ab]"])
def test_a_glob_without_matches_is_rejected(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "only-folders").mkdir()
    assert f"no file matches {str(tmp_path / pattern)!r}" in source_error(tmp_path / pattern).message


def test_a_file_without_read_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open` and `iterdir` are replaced, because root may read everything."""

    def refuse(path: object, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    path = write(tmp_path / "folder/closed/secret.txt", "secret")
    with monkeypatch.context() as patch:
        patch.setattr(readers, "open", refuse, raising=False)
        for source in (path, tmp_path, tmp_path / "**"):
            assert f"{str(path)!r} cannot be read: Permission denied" in source_error(source).message
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: refuse(path) if path.name == "closed" else iterdir(path))
    assert f"{str(path.parent)!r} cannot be read: Permission denied" in source_error(tmp_path).message


@pytest.mark.parametrize("name", ["a" * 5_000, "nul\0byte", "nul\0byte*", "a" * 5_000 + "*", "file/below"])
def test_an_impossible_file_name_gives_no_traceback(tmp_path: Path, name: str) -> None:
    write(tmp_path / "file", "text")
    source_error(tmp_path / name)


def test_the_hint_for_a_misspelled_path_is_the_nearest_one_in_its_folder(tmp_path: Path) -> None:
    for name in ("shakespeare_char", "openwebtext", "shakespeare"):
        (tmp_path / name).mkdir()
    assert source_error(tmp_path / "shakespear_char").hint == str(tmp_path / "shakespeare_char")
    assert "a glob" in str(source_error(tmp_path / "quixote").hint)


# Tiny Shakespeare


def no_network(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no network here")


class Response(io.BytesIO):
    """What `urlopen` returns, with the length of the whole file."""

    def __init__(self, content: bytes, length: int | None = None) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(length or len(content))}


def test_shakespeare_is_read_from_the_cache(shared: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(shared / "tinyshakespeare.txt", own_cache)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    corpus = open_corpus("shakespeare")
    (text,) = read_corpus(corpus)
    assert corpus.name == "shakespeare"
    assert len(text) == 1_115_394
    assert sha256(corpus) == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert text.startswith("First Citizen:\nBefore we proceed")


def test_shakespeare_is_downloaded_once(shared: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (shared / "tinyshakespeare.txt").read_bytes()
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(content))
    downloaded = read_source("shakespeare")
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    assert read_source("shakespeare") == downloaded
    assert (own_cache / "tinyshakespeare.txt").read_bytes() == content


def test_a_download_of_shakespeare_that_ends_early_is_a_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(b"First Citizen", 1_115_394))
    assert "could not be downloaded" in source_error("shakespeare").message


def test_a_download_reports_bytes(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (shared / "tinyshakespeare.txt").read_bytes()
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(content))
    events: list[progress.PreparationProgress] = []
    with progress.listen(events.append):
        read_source("shakespeare")
    last = [event for event in events if event.unit == "bytes"][-1]
    assert (last.stage, last.done, last.total) == ("downloading tinyshakespeare.txt", len(content), len(content))


def test_a_failed_download_of_shakespeare_names_the_path_for_a_copy(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    error = str(source_error("shakespeare"))
    assert "no network here" in error
    assert str(own_cache / "tinyshakespeare.txt") in error
    assert "OCTAVO_CACHE" in error


def test_a_download_of_shakespeare_with_wrong_bytes_is_rejected(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(b"Log in to this network"))
    assert "is not the expected" in source_error("shakespeare").message
    assert list(own_cache.iterdir()) == []


# Python's documentation

READ_PYDOCS = """
import hashlib, sys
from octavo.data.sources import open_source
from octavo.settings import DataSettings
before = set(sys.modules)
text = "".join(chunk.text for chunk in open_source(DataSettings(source="pydocs")).chunks())
print(hashlib.sha256(text.encode()).hexdigest())
print(*sorted(set(sys.modules) - before))
"""


@pytest.fixture(scope="module")
def pydocs() -> Corpus:
    return open_corpus("pydocs")


@pytest.fixture(scope="module")
def pydocs_text(pydocs: Corpus) -> str:
    (text,) = read_corpus(pydocs)
    return text


@pytest.mark.parametrize(("hash_seed", "option"), [("1", "-Werror"), ("2", "-OO")])
def test_pydocs_is_identical_in_every_process_and_imports_nothing(pydocs: Corpus, hash_seed: str, option: str) -> None:
    command = [sys.executable, option, "-c", READ_PYDOCS]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    digest, imported = done.stdout.splitlines()
    assert digest == sha256(pydocs)
    public = {name for name in imported.split() if not name.startswith("_")}  # sysconfig has private data
    assert public <= {"pydoc_data", "pydoc_data.topics"}


def test_pydocs_is_a_megabyte_of_printable_ascii(pydocs_text: str) -> None:
    assert 900_000 < len(pydocs_text) < 1_200_000
    assert len(set(pydocs_text)) < 100
    assert pydocs_text.isascii()
    assert pydocs_text.replace("\n", "").isprintable()
    assert not any(line != line.rstrip() for line in pydocs_text.split("\n"))
    assert pydocs_text == pydocs_text.strip() + "\n"


def test_pydocs_has_public_sections_and_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small fake Python shows what is used, what is skipped, and the layout."""
    topics = {
        "if": "The if\n****\n\nIt’s chosen…\n",
        "compound": "Compound\n****\n\nThe ß goes.\n\nAll.  \n\n\nThe if\n====\n\nIt’s chosen…\n",
    }
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", SimpleNamespace(topics=topics))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    write(tmp_path / "os.py", 'def name(a, b=1, *, c: int = 2): "Odd \\d escape."\ndef _private(): "No."')
    write(tmp_path / "json/__init__.py", '"""Read.\n\n    Write.\n    """\ndef empty(): pass')
    write(tmp_path / "json/tool.py", 'class Tool:\n  "A tool."\n  async def use(self): "Use \u00e9."; "No."')
    write(tmp_path / "json/more.py", 'class Tool:\n  def use(self): "Use it."\n  def _no(self): "No."')
    for path in ("json/_private.py", "json/tests/a.py", "site-packages/a.py", "idlelib/a.py", "mine.py"):
        write(tmp_path / path, '"No."')
    assert read_source("pydocs") == [
        "Compound\n****\n\nAll.\n\n\n"
        "The if\n====\n\nIt's chosen...\n\n\n"
        "module json\n\nRead.\n\nWrite.\n\n\n"
        "json.more.Tool.use(self)\n\nUse it.\n\n\n"
        "class json.tool.Tool\n\nA tool.\n\n\n"
        "os.name(a, b=1, *, c: int=2)\n\nOdd \\d escape.\n"
    ]


def test_pydocs_has_the_language_reference_before_the_library(pydocs_text: str) -> None:
    reference, _, library = pydocs_text.partition("\n\n\nmodule ")
    assert 'The "if" statement\n' in reference
    assert "\n\n\nargparse.Namespace\n" not in reference
    assert "\n\n\nclass argparse.Namespace\n\nSimple object for storing attributes" in library
    modules = re.findall(r"\n\n\nmodule (\w+)", pydocs_text)
    assert len(modules) > 50
    assert modules == sorted(modules)
    assert set(modules) <= sys.stdlib_module_names


def test_pydocs_repeats_few_paragraphs(pydocs_text: str) -> None:
    """A paragraph in both splits would reward memorization."""
    long = [paragraph for paragraph in pydocs_text.split("\n\n") if len(paragraph) > 400]
    assert len(long) > 100
    assert len(long) - len(set(long)) < len(long) / 50


def test_a_python_without_its_documentation_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pydoc_data.topics", None)
        assert "pydoc_data.topics" in source_error("pydocs").message
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python3.zip"))
    assert "python3.zip" in source_error("pydocs").message
