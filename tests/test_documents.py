"""Files of other programs are converted to text: PDF, Word, HTML, EPUB, notebooks, archives and chats."""

import importlib.util
import io
import json
import os
import random
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import documents
from octavo.data import formats
from octavo.data.conversion import Converter
from octavo.data.limits import Limits
from octavo.data.prepare import prepare_dataset
from octavo.data.sources import open_source
from octavo.errors import OctavoWarning, install_command
from preparing import data_settings, error_of, read_corpus, read_source, source_error, write

TRANSCRIPT = "User: How do owls fly?\nAssistant: In silence.\n"


def read_file(folder: Path, name: str, content: str | bytes) -> list[str]:
    """The documents of a file."""
    return read_source(write(folder / name, content))


# Documents


def test_a_web_page_becomes_its_text(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>No</title><style>p {}</style></head><body>
      <nav><a href="/">No</a></nav><h1>Owls &amp; mice</h1><p>An owl <b title="a > b">flies</b>
      by&nbsp;night.<br>It hears.</p><script>if (a < b) "<p>No</p>"</script><!-- <p>No</p> -->
      <ul><li>one<li>two</ul><pre>  a\n    b</pre><table><tr><td>1</td><td>2</td></tr></table></body></html>"""
    (text,) = read_file(tmp_path, "a.html", page)
    assert text == "Owls & mice\n\nAn owl flies by night.\nIt hears.\n\n- one\n- two\n\n  a\n    b\n\n1\t2\n"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "windows-1251"])
def test_a_web_page_is_decoded_as_it_states(encoding: str, tmp_path: Path) -> None:
    text = {"windows-1251": "Сова", "latin-1": "Hibou été", "utf-8": "漢字"}[encoding]
    page = f'<html><head><meta charset="{encoding}"></head><body>{text}</body></html>'
    assert read_file(tmp_path, "a.htm", page.encode(encoding)) == [text + "\n"]


@pytest.mark.parametrize("section", ["<![[[[>", "<![x y>", "<![CDATA[No]]>", "<![if IE]>", "<![temp[No]]>", "<![[[["])
def test_a_section_that_no_browser_knows_is_a_comment(section: str, tmp_path: Path) -> None:
    end = ">" if section.endswith("[[[[") else ""
    assert read_file(tmp_path, "a.html", f"<p>An owl {section}{end}flies".encode()) == ["An owl flies\n"]


def test_a_word_document_becomes_its_paragraphs(tmp_path: Path) -> None:
    cells = "".join(f"<w:tc>{documents.paragraph(text)}</w:tc>" for text in "ab")
    tabs = '<w:pPr><w:tabs><w:tab w:val="left" w:pos="709"/></w:tabs></w:pPr>'
    fallback = '<mc:AlternateContent xmlns:mc="urn:m"><mc:Fallback><w:p><w:r><w:t>No</w:t></w:r></w:p></mc:Fallback>'
    body = (
        f"<w:p>{tabs}<w:r><w:t>One</w:t><w:tab/><w:t>two &amp; three</w:t><w:br/><w:delText>No</w:delText></w:r></w:p>"
        f"{documents.paragraph('नमस्ते ')}<w:tbl><w:tr>{cells}</w:tr></w:tbl>{fallback}</mc:AlternateContent>"
    )
    assert read_file(tmp_path, "a.docx", documents.word(body)) == ["One\ttwo & three\n\nनमस्ते \na \tb \t\n"]


def test_a_book_becomes_its_chapters_in_reading_order(tmp_path: Path) -> None:
    assert read_file(tmp_path, "a.epub", documents.epub("One.", "Two &amp; a half.", "")) == ["One.\n\nTwo & a half.\n"]


def test_a_notebook_becomes_its_cells(tmp_path: Path) -> None:
    content = documents.notebook(["# Owls\n", "They fly."], "print(1)\n", "")
    assert read_file(tmp_path, "a.ipynb", content) == ["# Owls\nThey fly.\n\nprint(1)\n"]


def test_a_pdf_becomes_the_text_of_its_pages(tmp_path: Path) -> None:
    assert read_file(tmp_path, "a.pdf", documents.pdf("One owl.", "Two owls.")) == ["One owl.\n\nTwo owls.\n"]
    error = source_error(write(tmp_path / "b.pdf", documents.pdf("")))
    assert "has no text" in error.message
    assert "ocrmypdf" in str(error.hint)


def test_without_the_extra_a_named_pdf_is_an_error_and_one_in_a_folder_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.pdf", documents.pdf("One owl."))
    write(tmp_path / "b.txt", "text")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for source in (path, (str(path), str(tmp_path))):
        assert str(source_error(source).hint).startswith(install_command("docs"))
    corpus = open_source(data_settings(tmp_path))
    assert read_corpus(corpus) == ["text"]
    assert corpus.report.skipped == {f"PDF ({install_command('docs')})": (1, str(path))}


def test_a_pdf_is_read_once_the_extra_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the scan, by which unchanged files are recognized, does not hide it."""
    write(tmp_path / "a.pdf", documents.pdf("One owl."))
    write(tmp_path / "b.txt", "text " * 100)
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    sizes = []
    for is_installed in (False, True):
        with monkeypatch.context() as patch:
            if not is_installed:
                patch.setattr(importlib.util, "find_spec", lambda name: None)
            with pytest.warns(OctavoWarning, match="PDF"):
                dataset = prepare_dataset(data_settings(tmp_path)).result
        sizes.append(dataset.info["text"]["bytes"])
    assert sizes == [500, 500 + len("One owl.\n")]


# Chats


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                {"role": "user", "content": "How do owls fly?"},
                {"role": "assistant", "content": "In silence."},
            ]
        },
        {"conversations": [{"from": "human", "value": "How do owls fly?"}, {"from": "gpt", "value": "In silence."}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How do owls fly?"}]},
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "assistant", "content": " In silence.\n"},
            ]
        },
        {
            "chat_messages": [
                {"sender": "human", "text": "How do owls fly?"},
                {"sender": "assistant", "text": "In silence."},
            ]
        },
        *documents.chatgpt_export(),
        {key: value for key, value in documents.chatgpt_export()[0].items() if key != "current_node"},
    ],
)
def test_a_chat_becomes_a_transcript(row: dict[str, object], tmp_path: Path) -> None:
    assert read_file(tmp_path, "a.jsonl", json.dumps(row) + "\n") == [TRANSCRIPT]
    assert read_file(tmp_path, "a.json", json.dumps([row, row], indent=1)) == [TRANSCRIPT, TRANSCRIPT]
    assert read_file(tmp_path, "b.json", json.dumps(row, indent=1)) == [TRANSCRIPT]


@pytest.mark.parametrize(
    ("mapping", "last"),
    [
        ({"a": {"parent": "b", "children": ["b"]}, "b": {"parent": "a", "children": ["a"]}}, "a"),
        ({"a": {"parent": None, "children": [["a"]]}}, ["a"]),
        ({"a": {"parent": None, "children": {}}, "b": 5}, {}),
        ({"a": {"parent": ["a"], "message": {"author": [], "content": {"parts": 5}}}}, "a"),
        ({}, None),
    ],
)
def test_a_conversation_whose_branches_lead_nowhere_has_no_text(mapping: object, last: object, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([{"mapping": mapping, "current_node": last}]))
    assert "is empty" in source_error(path).message


def test_the_field_of_a_chat_may_be_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "How do owls fly?"}, {"role": "assistant", "content": "In silence."}]
    path = write(tmp_path / "a.jsonl", json.dumps({"id": 1, "turns": turns, "text": "plain"}) + "\n")
    assert read_source(path, text_field="turns") == [TRANSCRIPT]
    assert read_source(path) == ["plain"]


def test_the_hint_for_a_missing_field_names_a_field_of_text(tmp_path: Path) -> None:
    rows = {
        "a.jsonl": '{"id": 5, "score": "0.5", "title": "owl", "story": "An owl flies."}\n',
        "a.csv": "id,score,title,story\n5,0.5,owl,An owl flies.\n",
    }
    for name, content in rows.items():
        assert source_error(write(tmp_path / name, content)).hint == "--text-field story"
    assert source_error(write(tmp_path / "b.jsonl", '{"step": 5}\n')).hint == "--text-field NAME"


# Archives

MEMBERS = {
    "notes/a.txt": b"a",
    "../../b.md": b"outside",
    "page.html": b"<html><body>c</body></html>",
    "rows.jsonl": b'{"text": "d"}\n{"text": "e"}\n',
    "empty.txt": b"",
    "logo.png": documents.PNG,
    "inner.zip": b"PK",
    "node_modules/x.js": b"skipped",
    ".git/config": b"skipped",
    "a.docx": documents.word(documents.paragraph("f")),
}
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "a.zip": lambda: documents.zip_of(dict(MEMBERS)),
    "a.tar": lambda: documents.tar_of(MEMBERS),
    "a.tar.gz": lambda: documents.tar_of(MEMBERS, "w:gz"),
    "a.tgz": lambda: documents.tar_of(MEMBERS, "w:gz"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_files_of_an_archive_are_read_like_those_of_a_folder(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, ARCHIVES[name]())
    corpus = open_source(data_settings(path))
    assert read_corpus(corpus) == ["a", "c\n", "d", "e", "f\n"]
    assert {reason: example for reason, (_, example) in corpus.report.skipped.items()} == {
        "empty": f"{path}/empty.txt",
        "binary": f"{path}/logo.png",
        "within another archive": f"{path}/inner.zip",
    }
    assert [file.name for file in tmp_path.iterdir()] == [name]  # nothing is unpacked
    # The archive itself is no file with text.
    archive = "ZIP" if name == "a.zip" else "tar"
    kinds = {"text": 1, "HTML": 1, "JSON lines": 1, "Word": 1}
    assert corpus.report.read == {f"{kind} in a {archive}": count for kind, count in kinds.items()}


def test_an_archive_that_would_fill_the_memory_is_rejected(tmp_path: Path) -> None:
    limits = Limits(decompressed=1 << 20)
    bomb = {f"{i}.txt": b"a\n" * 100_000 for i in range(20)}
    for name, content in {"a.zip": documents.zip_of(dict(bomb)), "a.tgz": documents.tar_of(bomb, "w:gz")}.items():
        path = write(tmp_path / name, content)
        error = error_of(lambda path=path: read_corpus(open_source(data_settings(path), limits)))
        assert "decompresses to more than 250 times its size" in error.message


def test_the_encrypted_members_of_an_archive_are_skipped(tmp_path: Path) -> None:
    content = bytearray(documents.zip_of({"a.txt": "a", "b.txt": "b"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # of the first member
        content[content.index(signature) + offset] |= 1
    corpus = open_source(data_settings(write(tmp_path / "a.zip", bytes(content))))
    assert read_corpus(corpus) == ["b"]
    assert list(corpus.report.skipped) == ["encrypted"]


# What is read as it is


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.json", '{"a": 1}', "JSON"),
        ("notes", '{"a": 1}', "JSON"),
        ("a.txt", "<!doctype html><p>a", "HTML"),
        ("a.md", "<h1>An owl</h1>", None),
        ("a.txt", "[Verse 1] An owl", None),
    ],
)
def test_markup_that_is_read_as_it_is_is_reported(name: str, content: str, kind: str | None, tmp_path: Path) -> None:
    corpus = open_source(data_settings(write(tmp_path / name, content)))
    assert read_corpus(corpus) == [content]
    (counted,) = corpus.report.read
    assert counted == (f"{kind} as it is, with its markup" if kind else "text")


# Files that are damaged or hostile


def entity_bomb() -> bytes:
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    return f'<!DOCTYPE x [<!ENTITY a0 "owl">{entities}]><x>&a9;</x>'.encode()


DAMAGED: dict[str, bytes] = {
    "cut.pdf": documents.pdf("One owl.")[:200],
    "text.pdf": b"An owl.",
    "cut.docx": documents.word(documents.paragraph("One owl."))[:-30],
    "text.docx": b"An owl.",
    "no-part.docx": documents.zip_of({"other": "x"}),
    "cut-xml.docx": documents.zip_of({"word/document.xml": "<x"}),
    "entities.docx": documents.zip_of({"word/document.xml": entity_bomb()}),
    "no-chapters.epub": documents.epub(),
    "no-package.epub": documents.zip_of({"META-INF/container.xml": "<container/>"}),
    "missing.epub": documents.zip_of({"META-INF/container.xml": '<a><rootfile full-path="../../x"/></a>'}),
    "cut.ipynb": documents.notebook("x")[:-5].encode(),
    "list.ipynb": b"[1]",
    "deep.ipynb": b"[" * 100_000,
    "encoding.html": b'<html><meta charset="no-such"><p>a',
    "stated.html": b'<html><meta charset="utf-8"><p>\xff',
    "cut.zip": documents.zip_of({"a.txt": "a" * 1000})[:-30],
    "text.zip": b"An owl.",
    "text.tar": b"An owl." * 200,
    "octavo.html": b'<!doctype html><script id="octavo-static">{}</script>',
}


def test_a_damaged_file_is_an_error_if_it_is_named_and_skipped_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text")
    for name, content in DAMAGED.items():
        assert name in source_error(write(tmp_path / name, content)).message
    corpus = open_source(data_settings(tmp_path))
    assert read_corpus(corpus) == ["text"]
    assert sum(count for count, _ in corpus.report.skipped.values()) == len(DAMAGED)


def test_a_file_that_takes_too_long_is_an_error(tmp_path: Path) -> None:
    """Python's HTML parser takes quadratic time for some pages. The process is ended, and another one started."""
    page = b"<html>" + b"<a" * 300_000
    with Converter(Limits(conversion_seconds=0.5, conversion_rate=1e9)) as converter:
        start = time.perf_counter()
        error = error_of(lambda: converter.convert(page, "a.html", formats.HTML, "utf-8"))
        assert time.perf_counter() - start < 30
        assert "a.html takes more than" in error.message
        assert converter.convert(b"<p>b", "b.html", formats.HTML, "utf-8") == "b\n"


def test_an_answer_that_is_cut_short_is_not_a_text(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed while it writes."""
    code = "import sys; sys.stdin.readline(); sys.stdout.write('{\"size\": 9}\\nabc')"
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: popen([*words[:3], code], **options))
    with Converter(Limits()) as converter:
        error = error_of(lambda: converter.convert(b"<p>b", "b.html", formats.HTML, "utf-8"))
    assert "b.html ended the process" in error.message
    assert not (own_cache / "converted").exists()


def test_a_part_that_unpacks_to_too_much_is_an_error(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as part:
        for _ in range(65):
            part.write(bytes(1 << 20))
    assert "unpacks to more than" in source_error(write(tmp_path / "a.docx", file.getvalue())).message


def test_a_converted_text_is_kept_in_the_cache(own_cache: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.html", "<p>one")
    assert read_source(path) == ["one\n"]
    (cached,) = (own_cache / "converted").iterdir()
    cached.write_text("two\n", encoding="utf-8")
    assert read_source(path) == ["two\n"]
    assert read_source(write(tmp_path / "b.html", "<p>three")) == ["three\n"]


def test_every_format_has_a_row_in_the_guide() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    for format in formats.FORMATS:
        suffixes = ", ".join(f"`{suffix}`" for suffix in format.suffixes) or "any other"
        extra = f"`{format.extra}`" if format.extra else ""
        assert f"| {format.name} | {suffixes} | {format.documents} | {extra} |" in guide


def test_random_pages_are_converted(tmp_path: Path) -> None:
    pieces = [
        "<p>",
        "</p>",
        "<",
        ">",
        "<!--",
        "-->",
        "<script>",
        "</script>",
        "&amp;",
        "&#0;",
        "<![",
        "[",
        "]]>",
        "CDATA[",
        "&#xd800;",
        "é",
        "\0",
        " ",
    ]
    with Converter(Limits()) as converter:
        for seed in range(50):
            page = "".join(random.Random(seed).choices(pieces, k=60)).encode()
            converter.convert(page, "a.html", formats.HTML, "utf-8").encode()
