"""Corpora: the text is what the files say, in the order of their paths; what can't be read is told."""

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

from octavo.data import readers
from octavo.data.sources import Corpus, open_source
from octavo.errors import OctavoError
from octavo.settings import DataSettings

BOM = b"\xef\xbb\xbf"
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff"


def text_in(corpus: Corpus) -> str:
    """All of it, each document starting on a line of its own."""
    found = [""]
    for text, ends in corpus.chunks():
        found[-1] += text
        if ends:
            found.append("")
    *texts, last = found[:-1]
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts) + last


def text_of(source: object, **how: str) -> str:
    return text_in(open_source(DataSettings(source=str(source), **how)))


def digest(corpus: Corpus) -> str:
    return hashlib.sha256(text_in(corpus).encode()).hexdigest()


def refusal(source: object, **how: str) -> str:
    """What the error says, first line and hint."""
    with pytest.raises(OctavoError) as caught:
        list(open_source(DataSettings(source=str(source), **how)).chunks())
    assert caught.value.hint
    return str(caught.value)


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Files


def test_a_file_is_read_to_the_letter(tmp_path: Path) -> None:
    """Line ends of any kind, every plane of Unicode: the text is the bytes, decoded, and no more."""
    signs = "ab \n\r\t\x0b\x0c\x85\u2028éπ漢\u0628\u0915\u094d\U0001f600\ufeff"
    for seed in range(50):
        content = ("x" + "".join(random.Random(seed).choices(signs, k=40))).encode()
        corpus = open_source(DataSettings(source=str(written(tmp_path / "some.txt", content))))
        assert text_in(corpus).encode() == content
        assert corpus.name == "some"
        assert [(piece.text, piece.ends_document) for piece in corpus.chunks()] == [(content.decode(), True)]


@pytest.mark.parametrize("name", ["architecture.ar.md", "embeddings.hi.md", "embeddings.de.md"])
def test_text_in_other_scripts_is_read(shared: Path, name: str) -> None:
    path = shared / "notes" / name
    assert text_of(path).encode() == path.read_bytes().removeprefix(BOM)


def test_a_folder_is_its_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["b.txt", "a.txt", "a/z.md", "a/b/c.rst", "B.txt", "a b/c", "é.txt", "LICENSE"]
    in_order = ["B.txt", "LICENSE", "a/b/c.rst", "a/z.md", "a b/c", "a.txt", "b.txt", "é.txt"]
    for seed in range(3):
        folder = tmp_path / f"written {seed}"
        for name in random.Random(seed).sample(names, len(names)):
            written(folder / name, f"{name}\n")
        assert text_of(folder).splitlines() == in_order
        assert text_of(folder / "**") == text_of(folder)


def test_each_file_starts_on_a_line_of_its_own(tmp_path: Path) -> None:
    for name, content in {"1": "one", "2": "two\n", "3": "", "4": "four\r\n", "5": "\n", "6": "six"}.items():
        written(tmp_path / name, content)
    assert text_of(tmp_path) == "one\ntwo\nfour\r\n\nsix"


def test_a_folder_leaves_out_what_is_hidden_or_binary(tmp_path: Path) -> None:
    for name in (".hidden.txt", ".git/config", "notes/.cache/x.txt"):
        written(tmp_path / name, "hidden")
    written(tmp_path / "picture.png", PICTURE)
    written(tmp_path / "README.md", "read me\n")
    written(tmp_path / "notes/notes.txt", "notes\n")
    assert text_of(tmp_path) == text_of(tmp_path / "**") == "read me\nnotes\n"


def test_a_hidden_folder_is_read_when_named(tmp_path: Path) -> None:
    assert text_of(written(tmp_path / ".notes/a.txt", "a").parent) == "a"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_folder_with_links_ends(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "a\n")
    (tmp_path / "round").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "nowhere.txt").symlink_to(tmp_path / "missing")
    (tmp_path / "again.txt").symlink_to(tmp_path / "a.txt")
    assert text_of(tmp_path) == "a\na\n"


def test_a_glob_takes_what_matches_in_order(tmp_path: Path) -> None:
    for name in ("b/2.md", "b/1.md", "a.md", "a.txt", "b/deep/3.md"):
        written(tmp_path / name, f"{name}\n")
    assert text_of(tmp_path / "*.md") == "a.md\n"
    assert text_of(tmp_path / "*/*.md") == "b/1.md\nb/2.md\n"
    assert text_of(tmp_path / "**/*.md") == "a.md\nb/1.md\nb/2.md\nb/deep/3.md\n"


def test_a_file_that_is_named_like_a_glob_is_the_file(tmp_path: Path) -> None:
    written(tmp_path / "a1.txt", "another")
    assert text_of(written(tmp_path / "a[1].txt", "this")) == "this"


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
def test_a_corpus_has_a_name_that_a_folder_can_have(tmp_path: Path, source: str, name: str) -> None:
    for file in ("first draft.txt", "deep/a.txt", "مقدمة.v2.txt", "[x]: ?", "-.-.txt"):
        written(tmp_path / "my notes" / file, "text")
    assert open_source(DataSettings(source=f"{tmp_path}/{source}")).name == name


def test_the_working_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written(tmp_path / "poems/a.txt", "a").parent)
    assert [open_source(DataSettings(source=source)).name for source in (".", "*.txt", "a.txt")] == [
        "poems",
        "poems",
        "a",
    ]


def test_a_name_goes_before_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "pydocs", "a file")
    monkeypatch.chdir(tmp_path)
    assert len(text_of("pydocs")) > 100_000
    assert text_of("./pydocs") == "a file"


def test_standard_input_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BOM + b"piped \r\n")))
    corpus = open_source(DataSettings(source="-"))
    assert (corpus.name, text_in(corpus)) == ("stdin", "piped \r\n")


@pytest.mark.parametrize(
    ("content", "what"), [(b"", "empty"), (BOM, "empty"), (PICTURE, "binary"), (b"ab\xff", "not utf-8: ")]
)
def test_standard_input_without_text_is_told(content: bytes, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert refusal("-").startswith(f"standard input is {what}")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_pipe_is_read_once_and_can_be_read_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen([sys.executable, "-c", f"open({str(tmp_path / 'pipe')!r}, 'w').write('piped')"]):
        corpus = open_source(DataSettings(source=str(tmp_path / "pipe")))
    assert (text_in(corpus), text_in(corpus)) == ("piped", "piped")


def test_a_program_without_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is empty" in refusal("-")


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "UTF8"])
def test_the_byte_order_mark_of_each_file_goes_and_no_other(tmp_path: Path, encoding: str) -> None:
    written(tmp_path / "1.txt", BOM + "wörd".encode())
    written(tmp_path / "2.txt", BOM + BOM + b"x")
    written(tmp_path / "3.txt", b"without")
    assert text_of(tmp_path, encoding=encoding) == "wörd\n\ufeffx\nwithout"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("before", [b"", "naïve ".encode(), b"a" * 70_000, BOM])
def test_an_invalid_byte_is_told_with_its_offset_in_the_file(tmp_path: Path, before: bytes, encoding: str) -> None:
    path = written(tmp_path / "latin.txt", before + b"\xe9t\xe9")
    said = refusal(path, encoding=encoding)
    assert said.startswith(f"{path} is not utf-8: ")
    assert f"at byte offset {len(before)}\n" in said
    assert "--encoding latin-1" in said
    assert "--errors replace" in said


def test_encoding_and_errors_overrule(tmp_path: Path) -> None:
    path = written(tmp_path / "latin.txt", b"\xe9t\xe9")
    assert text_of(path, encoding="latin-1") == "été"
    assert text_of(path, errors="replace") == "\ufffdt\ufffd"
    assert text_of(path, errors="ignore") == "t"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252", "utf_8"])
def test_text_in_any_encoding_is_read_back(tmp_path: Path, encoding: str) -> None:
    assert text_of(written(tmp_path / "a.txt", "naïve\r\n".encode(encoding)), encoding=encoding) == "naïve\r\n"


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("how", [{}, {"errors": "replace"}, {"encoding": "latin-1"}])
def test_utf_16_is_recognized_by_its_mark(tmp_path: Path, codec: str, how: dict[str, str]) -> None:
    path = written(tmp_path / "from-windows.txt", "\ufeffhello\r\n".encode(codec))
    for source in (path, tmp_path):  # in a folder, too, it is no picture to pass over
        said = refusal(source, **how)
        assert said.startswith(f"{path} looks like utf-16")
        assert said.endswith("--encoding utf-16")
    assert text_of(path, encoding="utf-16") == "hello\r\n"


def test_a_broken_utf_16_file_is_told(tmp_path: Path) -> None:
    said = refusal(written(tmp_path / "odd.txt", b"\xff\xfea\0b"), encoding="utf-16")
    assert "is not utf-16" in said
    assert "at byte offset 4" in said


@pytest.mark.parametrize("encoding", ["utf-99", "", "hex", "undefined", "a\0b"])
def test_an_encoding_that_is_none_is_told(tmp_path: Path, encoding: str) -> None:
    assert "no text encoding" in refusal(written(tmp_path / "a.txt", "a"), encoding=encoding)
    assert "no text encoding" in refusal("pydocs", encoding=encoding)


def test_a_codec_with_errors_of_its_own_gives_no_traceback(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(written(tmp_path / "a.txt", b"+2AA-"), encoding="utf-7")
    assert "a.txt" in refusal(written(tmp_path / "a.txt", b"xn--\xff"), encoding="idna")


def test_errors_that_are_not_known_are_told(tmp_path: Path) -> None:
    said = refusal(written(tmp_path / "a.txt", "a"), errors="surrogateescape")
    assert "'surrogateescape'" in said


# What can't be read


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    said = refusal(tmp_path / "missing.txt")
    assert said.startswith(f"there is no file or folder {str(tmp_path / 'missing.txt')!r}")
    assert "pydocs or shakespeare" in said
    assert "no file or folder ''" in refusal("")


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("shakespear", "shakespeare"), ("SHAKESPEARE", "shakespeare"), ("pydoc", "pydocs")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(
    misspelt: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(misspelt).endswith(f"try: {meant}")


@pytest.mark.parametrize("content", [b"", BOM])
def test_a_file_without_a_character_is_empty(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path / "empty.txt", content)
    assert refusal(path).startswith(f"{path} is empty")


def test_blank_text_is_text(tmp_path: Path) -> None:
    assert text_of(written(tmp_path / "blank.txt", " \n")) == " \n"


def test_a_binary_file_is_told_when_named(tmp_path: Path) -> None:
    path = written(tmp_path / "picture.png", PICTURE)
    assert refusal(path).startswith(f"{path} is binary")
    assert refusal(path, errors="replace").startswith(f"{path} is binary")


def test_a_folder_without_text_is_told(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"{tmp_path} has no text in it (0 files")
    written(tmp_path / "picture.png", PICTURE)
    written(tmp_path / "empty.txt", b"")
    written(tmp_path / ".hidden", "text")
    assert "has no text in it (2 files, 1 of them binary)" in refusal(tmp_path)
    assert "has no text in it (1 files, 1 of them binary)" in refusal(tmp_path / "*.png")


@pytest.mark.parametrize("pattern", ["*.nothing", "missing/**", "only-folder*", "[ab]"])
def test_a_glob_that_matches_no_file_is_told(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "only-folders").mkdir()
    assert refusal(tmp_path / pattern).startswith(f"no file matches {str(tmp_path / pattern)!r}")


def test_what_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to root, who may read everything: the refusal is put in the system's mouth."""

    def refuse(path: object, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    path = written(tmp_path / "folder/closed/secret.txt", "secret")
    with monkeypatch.context() as patch:
        patch.setattr(readers, "open", refuse, raising=False)
        for source in (path, tmp_path, tmp_path / "**"):
            assert refusal(source).startswith(f"{str(path)!r} cannot be read: Permission denied")
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: refuse(path) if path.name == "closed" else iterdir(path))
    assert refusal(tmp_path).startswith(f"{str(path.parent)!r} cannot be read: Permission denied")


@pytest.mark.parametrize("name", ["a" * 5_000, "nul\0byte", "nul\0byte*", "a" * 5_000 + "*", "file/below"])
def test_a_name_that_no_file_can_have_gives_no_traceback(tmp_path: Path, name: str) -> None:
    written(tmp_path / "file", "text")
    assert refusal(tmp_path / name)


# Tiny Shakespeare


def no_network(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no network here")


def test_shakespeare_is_taken_from_the_cache(shared: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(shared / "tinyshakespeare.txt", own_cache)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    corpus = open_source(DataSettings(source="shakespeare"))
    assert corpus.name == "shakespeare"
    assert len(text_in(corpus)) == 1_115_394
    assert digest(corpus) == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert text_in(corpus).startswith("First Citizen:\nBefore we proceed")


def test_shakespeare_is_fetched_once(shared: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (shared / "tinyshakespeare.txt").read_bytes()
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(content))
    fetched = text_of("shakespeare")
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    assert text_of("shakespeare") == fetched
    assert (own_cache / "tinyshakespeare.txt").read_bytes() == content


def test_without_a_network_shakespeare_says_where_to_put_it(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    said = refusal("shakespeare")
    assert "no network here" in said
    assert str(own_cache / "tinyshakespeare.txt") in said
    assert "OCTAVO_CACHE" in said


def test_wrong_bytes_are_no_shakespeare(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"Log in to this network"))
    assert "is not the expected" in refusal("shakespeare")
    assert list(own_cache.iterdir()) == []


# The documentation inside every Python

READ_PYDOCS = """
import hashlib, sys
from octavo.data.sources import open_source
from octavo.settings import DataSettings
before = set(sys.modules)
print(hashlib.sha256("".join(p.text for p in open_source(DataSettings(source="pydocs")).chunks()).encode()).hexdigest())
print(*sorted(set(sys.modules) - before))
"""


@pytest.fixture(scope="module")
def pydocs() -> Corpus:
    return open_source(DataSettings(source="pydocs"))


@pytest.mark.parametrize(("hash_seed", "option"), [("1", "-Werror"), ("2", "-OO")])
def test_pydocs_is_the_same_in_every_process_and_imports_nothing(pydocs: Corpus, hash_seed: str, option: str) -> None:
    command = [sys.executable, option, "-c", READ_PYDOCS]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    found, imported = done.stdout.splitlines()
    assert found == digest(pydocs)
    public = {name for name in imported.split() if not name.startswith("_")}  # sysconfig has private data
    assert public <= {"pydoc_data", "pydoc_data.topics"}


def test_pydocs_is_about_a_megabyte_of_few_and_frequent_characters(pydocs: Corpus) -> None:
    assert 900_000 < len(text_in(pydocs)) < 1_200_000
    assert len(set(text_in(pydocs))) < 100
    assert text_in(pydocs).isascii()
    assert text_in(pydocs).replace("\n", "").isprintable()
    assert not any(line != line.rstrip() for line in text_in(pydocs).split("\n"))
    assert text_in(pydocs) == text_in(pydocs).strip() + "\n"


def test_pydocs_is_made_of_sections_and_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Python of our own: what is taken, what is passed over, and what it looks like."""
    topics = {
        "if": "The if\n****\n\nIt’s chosen…\n",
        "compound": "Compound\n****\n\nThe ß goes.\n\nAll.  \n\n\nThe if\n====\n\nIt’s chosen…\n",
    }
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", SimpleNamespace(topics=topics))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    written(tmp_path / "os.py", 'def name(a, b=1, *, c: int = 2): "Odd \\d escape."\ndef _private(): "No."')
    written(tmp_path / "json/__init__.py", '"""Read.\n\n    Write.\n    """\ndef empty(): pass')
    written(tmp_path / "json/tool.py", 'class Tool:\n  "A tool."\n  async def use(self): "Use \u00e9."; "No."')
    written(tmp_path / "json/more.py", 'class Tool:\n  def use(self): "Use it."\n  def _no(self): "No."')
    for path in ("json/_private.py", "json/tests/a.py", "site-packages/a.py", "idlelib/a.py", "mine.py"):
        written(tmp_path / path, '"No."')
    assert text_of("pydocs") == (
        "Compound\n****\n\nAll.\n\n\n"
        "The if\n====\n\nIt's chosen...\n\n\n"
        "module json\n\nRead.\n\nWrite.\n\n\n"
        "json.more.Tool.use(self)\n\nUse it.\n\n\n"
        "class json.tool.Tool\n\nA tool.\n\n\n"
        "os.name(a, b=1, *, c: int=2)\n\nOdd \\d escape.\n"
    )


def test_pydocs_has_the_reference_first_and_then_the_library(pydocs: Corpus) -> None:
    reference, _, library = text_in(pydocs).partition("\n\n\nmodule ")
    assert 'The "if" statement\n' in reference
    assert "\n\n\nargparse.Namespace\n" not in reference
    assert "\n\n\nclass argparse.Namespace\n\nSimple object for storing attributes" in library
    modules = re.findall(r"\n\n\nmodule (\w+)", text_in(pydocs))
    assert len(modules) > 50
    assert modules == sorted(modules)
    assert set(modules) <= sys.stdlib_module_names


def test_pydocs_says_nothing_twice(pydocs: Corpus) -> None:
    """What is learnt by heart from one split must not be found again in the other."""
    long = [piece for piece in text_in(pydocs).split("\n\n") if len(piece) > 400]
    assert len(long) > 100
    assert len(long) - len(set(long)) < len(long) / 50


def test_a_python_without_its_documentation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pydoc_data.topics", None)
        assert "there is no pydoc_data.topics" in refusal("pydocs")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python3.zip"))
    assert "there is no source of the library in" in refusal("pydocs")
