"""Which files a source means: several sources, and folders without what Octavo and other programs put there."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

import documents
from commands import SMALL, AssertRejected, RunCommand
from octavo.data.sources import Corpus, open_source
from octavo.errors import OctavoError
from octavo.settings import DataSettings, from_toml
from preparing import read_corpus, write

LONG = "The quick brown fox jumps over the lazy dog. " * 20


def open_all(*sources: object) -> Corpus:
    return open_source(DataSettings(source=tuple(map(str, sources)), tokenizer="char"))


def test_several_sources_are_read_in_their_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "docs/c.txt", "docs/d.txt"):
        write(tmp_path / name, name)
    corpus = open_all(tmp_path / "b.txt", tmp_path / "docs", tmp_path / "*.md")
    assert read_corpus(corpus) == ["b.txt", "docs/c.txt", "docs/d.txt", "a.md"]
    assert corpus.name == tmp_path.name
    assert open_all(tmp_path / "docs/c.txt", tmp_path / "docs/d.txt").name == "docs"


def test_a_file_that_several_sources_name_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("docs/a.txt", "docs/b.txt"):
        write(tmp_path / name, name)
    monkeypatch.chdir(tmp_path)
    assert read_corpus(open_all("docs/b.txt", "docs", tmp_path / "docs/a.txt")) == ["docs/b.txt", "docs/a.txt"]


def test_a_file_that_cannot_be_read_is_an_error_only_if_it_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    picture = write(tmp_path / "b.png", documents.PNG)
    assert read_corpus(open_all(tmp_path, tmp_path / "*.txt")) == ["a"]
    with pytest.raises(OctavoError, match="is binary") as caught:
        read_corpus(open_all(tmp_path, picture))
    assert "or their folder, which skips such files" in str(caught.value.hint)


def test_sources_of_different_kinds_can_be_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", "a")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    corpus = open_all(path, "-", tmp_path)
    assert read_corpus(corpus) == read_corpus(corpus) == ["a", "piped"]
    assert corpus.identity is None


def test_folders_of_octavo_and_other_programs_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "node_modules/x/readme.md",
        "venv/pyvenv.cfg",
        "venv/lib/a.txt",
        "src/__pycache__/a.txt",
        "runs/notes.txt",
        "wandb/log.txt",
        ".git/config",
        "cache/a.txt",
        "out/metrics.jsonl",
        "tokens/tokenizer.json",
        "model/README.md",
    ):
        write(tmp_path / name, "skipped")
    write(tmp_path / "out/settings.toml", 'preset = "tiny"\n')
    write(tmp_path / "tokens/dataset.json", "{}")
    write(tmp_path / "model/config.json", "{}")
    write(tmp_path / "model/model.safetensors", b"\0")
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    for name in ("a.txt", "src/b.py", "mine/settings.toml", "mine/dataset.json"):
        write(tmp_path / name, name)
    for source in (tmp_path, tmp_path / "**", tmp_path / "**/*"):
        corpus = open_all(source)
        assert read_corpus(corpus) == ["a.txt", "mine/dataset.json", "mine/settings.toml", "src/b.py"]
        assert sum(corpus.skipped_folders.values()) == 9
    assert read_corpus(open_all(tmp_path / "runs")) == ["skipped"]  # it is named


def test_the_output_of_the_command_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.txt", "a")
    with open(tmp_path / "log.txt", "w", encoding="utf-8") as log:
        log.write("a line of the log")
        log.flush()
        monkeypatch.setattr("sys.stdout", log)
        assert read_corpus(open_all(tmp_path)) == ["a"]


def write_mixed_folder(folder: Path) -> None:
    write(folder / "a.md", f"# Owls\n\n{LONG}\n")
    write(folder / "b.py", "def fly(owl):\n    return owl\n")
    write(folder / "c.html", f"<!doctype html><html><body><p>{LONG}</p></body></html>")
    write(folder / "d.pdf", documents.pdf("One owl.", "Two owls."))
    write(folder / "e.docx", documents.word(documents.paragraph("An owl.")))
    write(folder / "f.ipynb", documents.notebook("# Owls"))
    write(folder / "g.zip", documents.zip_of({"a.txt": "zipped", "b.png": documents.PNG}))
    write(folder / "h.csv", "id,text\n1,a row\n2,another row\n")
    write(folder / "i.png", documents.PNG)
    write(folder / "j.epub", documents.epub("A chapter."))


def test_training_on_a_folder_reads_the_same_text_each_time(run_command: RunCommand, workdir: Path) -> None:
    (workdir / "text.txt").unlink()
    write_mixed_folder(workdir)
    fingerprints, summaries = set(), set()
    for _ in range(5):
        result = run_command("train", ".", *SMALL, "--json")
        assert result.code == 0
        info = json.loads((Path(result.json["checkpoint"]) / "octavo.json").read_text(encoding="utf-8"))
        fingerprints.add(info["data"]["fingerprint"])
        summaries.add(result.err.splitlines()[0].partition("; folders skipped")[0])
    assert len(fingerprints) == 1
    assert summaries == {
        "note: ./: 9 files read (2 text, 1 HTML, 1 PDF, 1 Word, 1 notebook, 1 text in a ZIP, 1 CSV, 1 EPUB); "
        "2 skipped: 2 binary (g.zip/b.png, ...)"
    }


def test_a_run_of_several_sources_is_resumed_and_evaluated(
    run_command: RunCommand, workdir: Path, assert_rejected: AssertRejected
) -> None:
    write(workdir / "docs/b.txt", LONG)
    sources = ["text.txt", "docs"]
    run = run_command("train", *sources, *SMALL, "--out", "run", "--json").json["run"]
    assert from_toml(Path(run) / "settings.toml").source == tuple(sources)
    assert run_command("train", "--resume", run, "--max-steps", 6, "--json").json["step"] == 6
    expected = run_command("eval", run, "--json").json
    assert expected["tokens"] > 0
    together = run_command("eval", run, "--json", *sources).json
    assert together["bytes"] == len(LONG) + os.path.getsize("text.txt") - 1  # all but the first token
    write(workdir / "docs/c.txt", LONG)
    assert_rejected(["train", "--resume", run, "--max-steps", 8], "text.txt, docs is not the text")


def test_every_command_takes_several_sources(run_command: RunCommand, workdir: Path) -> None:
    write(workdir / "more.txt", LONG)
    stats = run_command("stats", "text.txt", "--tokenizer", "byte", "more.txt", "--json").json
    assert stats["documents"] == 2
    plain = run_command("prepare", "text.txt", "more.txt", "--out", "tokens", "--json").json
    assert plain["source"] == ["text.txt", "more.txt"]
    together = run_command("prepare", "text.txt", "more.txt", "--out", "others", "--together", "--json").json
    assert together["files"] == plain["files"]
    assert run_command("estimate", "text.txt", "more.txt", *SMALL, "--json").code == 0


@pytest.mark.parametrize("name", ["runs/mine", "runs/mine/checkpoints/step-000004"])
def test_a_run_is_not_a_text(name: str, run_folder: Path, assert_rejected: AssertRejected) -> None:
    assert_rejected(["train", name, *SMALL], name, "not a text")


def test_a_prepared_folder_is_a_source_alone(run_command: RunCommand, assert_rejected: AssertRejected) -> None:
    assert run_command("prepare", "text.txt", "--out", "tokens").code == 0
    assert_rejected(["train", "text.txt", "tokens", *SMALL], "tokens", "a prepared text")
